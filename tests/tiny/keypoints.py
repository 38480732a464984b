"""A tiny model of points, made with onnx alone: where is the red, the green and the blue of a picture?"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks.keypoints import Keypoints

TASK = Keypoints(names=("red", "green", "blue"), size=32, links=((0, 1), (1, 2)))
"""The middle of each colour."""


def graph() -> bytes:
    """The centre of mass of each colour in pixels of the square; its mean brightness is the confidence."""
    x = np.broadcast_to(np.arange(32, dtype=np.float32) + 0.5, (32, 32)).copy()
    constants = {
        "one": np.float32(1).reshape(1),
        "scale": np.float32(1 / 255).reshape(1),
        "x": x,
        "y": x.T.copy(),
        "places": np.array([2, 3], np.int64),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["numbers", "one"], ["lifted"]),
        helper.make_node("Transpose", ["lifted"], ["mass"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceSum", ["mass", "places"], ["whole"], keepdims=0),
    ]
    for axis in ("x", "y"):
        nodes += [
            helper.make_node("Mul", ["mass", axis], [f"mass_{axis}"]),
            helper.make_node("ReduceSum", [f"mass_{axis}", "places"], [f"sum_{axis}"], keepdims=0),
            helper.make_node("Div", [f"sum_{axis}", "whole"], [f"middle_{axis}"]),
            helper.make_node("Unsqueeze", [f"middle_{axis}", "last"], [f"column_{axis}"]),
        ]
    nodes += [
        helper.make_node("Concat", ["column_x", "column_y"], ["points"], axis=2),
        helper.make_node("ReduceMean", ["mass", "places"], ["brightness"], keepdims=0),
        helper.make_node("Mul", ["brightness", "scale"], ["confidence"]),
    ]
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 32, 32, 3])],
        [
            helper.make_tensor_value_info("points", TensorProto.FLOAT, ["batch", 3, 2]),
            helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["batch", 3]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
