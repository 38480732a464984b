"""Tiny classifiers, one with a single label and one with several; see tests/tiny/models.py."""

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from tasks.classification import Classification
from tests.tiny.graphs import build_graph

COLOURS = Classification(labels=("red", "green", "blue"), size=32)
"""Predicts the most frequent colour of an image."""


def colours_graph() -> bytes:
    """Make a graph of the mean of each colour: activation maps (batch, 3, 32, 32) and the softmax of their means."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["activation_map"]),
        helper.make_node("ReduceMean", ["activation_map", "axes"], ["means"], keepdims=0),
        helper.make_node("Softmax", ["means"], ["probabilities"], axis=1),
    ]
    return build_graph(COLOURS, nodes, {"scale": np.float32(1 / 25), "axes": np.array([2, 3], np.int64)})


TASK, graph = COLOURS, colours_graph

TAGS = replace(TASK, thresholds=(0.3, 0.3, 0.3))
"""Multi-label: which colours does an image have much of? The graph is the same."""

BARE = replace(TASK, heatmaps=False)
"""Without an activation map, as most graphs of other programs are."""


def bare_graph() -> bytes:
    """Make the graph without the output of its activation maps."""
    model = onnx.load_model_from_string(graph())
    del model.graph.output[1]
    return bytes(model.SerializeToString())


VARIANTS = {"tags": (TAGS, graph), "bare": (BARE, bare_graph)}
