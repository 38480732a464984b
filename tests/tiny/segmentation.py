"""A tiny segmentation model: is a pixel dark, grey or bright?"""

import numpy as np
from onnx import TensorProto, helper

from tasks.segmentation import Segmentation
from tests.tiny.graphs import build_graph

TASK = Segmentation(labels=("dark", "grey", "bright"), width=32, height=24)


def graph() -> bytes:
    """Build a graph that quantises the mean of a pixel's colours; its blue is the confidence."""
    constants = {
        "step": np.float32(86).reshape(1),
        "colours": np.array([3], np.int64),
        "two": np.array(2, np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "colours"], ["brightness"], keepdims=0),
        helper.make_node("Div", ["brightness", "step"], ["steps"]),
        helper.make_node("Floor", ["steps"], ["index"]),
        helper.make_node("Cast", ["index"], ["mask"], to=TensorProto.UINT8),
        helper.make_node("Gather", ["image", "two"], ["confidence"], axis=3),
    ]
    return build_graph(TASK, nodes, constants)
