"""A tiny model of masks, made with onnx alone: is a pixel dark, grey or bright?"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks.segmentation import Segmentation

TASK = Segmentation(labels=("dark", "grey", "bright"), width=32, height=24)
"""How bright each pixel is, in three steps."""


def graph() -> bytes:
    """The step that the mean of a pixel's colours falls into; its blue is the confidence."""
    constants = {
        "step": np.float32(86).reshape(1),
        "colours": np.array([3], np.int64),
        "two": np.array(2, np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "colours"], ["brightness"], keepdims=0),
        helper.make_node("Div", ["brightness", "step"], ["steps"]),
        helper.make_node("Floor", ["steps"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["mask"], to=TensorProto.UINT8),
        helper.make_node("Gather", ["image", "two"], ["confidence"], axis=3),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", 24, 32]) for name in ("mask", "confidence")
    ]
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 24, 32, 3])],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
