"""A tiny keypoint model: the centres of red, green and blue in an image."""

import numpy as np
from onnx import TensorProto, helper

from tasks.keypoints import Keypoints
from tests.tiny.graphs import build_graph

TASK = Keypoints(names=("red", "green", "blue"), size=32, links=((0, 1), (1, 2)))


def graph() -> bytes:
    """Build a graph that returns the centre of mass of each colour, and its mean brightness as the confidence."""
    x = np.broadcast_to(np.arange(32, dtype=np.float32) + 0.5, (32, 32)).copy()
    constants = {
        "one": np.float32(1).reshape(1),
        "scale": np.float32(1 / 255).reshape(1),
        "x": x,
        "y": x.T.copy(),
        "image_axes": np.array([2, 3], np.int64),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["numbers", "one"], ["shifted"]),
        helper.make_node("Transpose", ["shifted"], ["mass"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceSum", ["mass", "image_axes"], ["total"], keepdims=0),
    ]
    for axis in ("x", "y"):
        nodes += [
            helper.make_node("Mul", ["mass", axis], [f"mass_{axis}"]),
            helper.make_node("ReduceSum", [f"mass_{axis}", "image_axes"], [f"sum_{axis}"], keepdims=0),
            helper.make_node("Div", [f"sum_{axis}", "total"], [f"centre_{axis}"]),
            helper.make_node("Unsqueeze", [f"centre_{axis}", "last"], [f"column_{axis}"]),
        ]
    nodes += [
        helper.make_node("Concat", ["column_x", "column_y"], ["points"], axis=2),
        helper.make_node("ReduceMean", ["mass", "image_axes"], ["brightness"], keepdims=0),
        helper.make_node("Mul", ["brightness", "scale"], ["confidence"]),
    ]
    return build_graph(TASK, nodes, constants)
