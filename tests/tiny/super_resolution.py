"""A tiny model of super-resolution, made with onnx alone in milliseconds: each pixel becomes four of its colour."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks.super_resolution import SuperResolution

TASK = SuperResolution(scale=2, tile=32, overlap=10, margin=2)


def graph() -> bytes:
    """Nearest-neighbour resizing of uint8 (batch, 32, 32, 3) to (batch, 64, 64, 3)."""
    scales = numpy_helper.from_array(np.array([1, TASK.scale, TASK.scale, 1], np.float32), "scales")
    node = helper.make_node(
        "Resize",
        ["image", "", "scales"],
        ["restored"],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    (image,), (restored,) = TASK.inputs, TASK.outputs
    made = helper.make_graph(
        [node],
        "tiny",
        [helper.make_tensor_value_info(image.name, TensorProto.UINT8, ["batch", *image.shape])],
        [helper.make_tensor_value_info(restored.name, TensorProto.UINT8, ["batch", *restored.shape])],
        [scales],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
