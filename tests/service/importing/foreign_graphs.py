"""Graphs as other programs export them: normalised float images, channels first, logits, names of their own."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from onnx import ModelProto, NodeProto, helper, numpy_helper

Tensors = Mapping[str, tuple[str, Sequence[int | str]]]
"""By name: the numpy dtype and the shape, with the batch axis."""


def make(
    nodes: Sequence[NodeProto],
    inputs: Tensors,
    outputs: Tensors,
    constants: Mapping[str, ArrayLike] | None = None,
    *,
    opset: int = 17,
) -> ModelProto:
    """Make a graph of these nodes."""
    graph = helper.make_graph(
        nodes,
        "foreign",
        [_value_info(name, *kind) for name, kind in inputs.items()],
        [_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _value_info(name: str, dtype: str, shape: Sequence[int | str]):
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


FACTOR = 5.0


def classifier(
    *,
    batch: int | str = "n",
    last: str = "",
    opset: int = 17,
    input_shape: Sequence[int | str] = (3, 16, 16),
    dtype: str = "float32",
) -> ModelProto:
    """Make a classifier of colours: the mean of each channel times FACTOR as logits, or after the operator `last`."""
    axes = [2, 3] if input_shape[0] in (1, 3) else [1, 2]
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["means"], axes=axes, keepdims=1),
        helper.make_node("Reshape", ["means", "shape"], ["flat"]),
        helper.make_node("Mul", ["flat", "factor"], ["scores"]),
        helper.make_node(last or "Identity", ["scores"], ["output"]),
    ]
    constants = {
        "shape": np.array([batch if isinstance(batch, int) else -1, 3], np.int64),
        "factor": np.array(FACTOR, dtype),
    }
    return make(
        nodes, {"input": (dtype, (batch, *input_shape))}, {"output": (dtype, (batch, 3))}, constants, opset=opset
    )


def batch_dependent() -> ModelProto:
    """Make a classifier that subtracts the mean of its batch, as batch normalisation does in training."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["means"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["means", "mean"], ["output"]),
    ]
    return make(nodes, {"input": ("float32", ("n", 3, 16, 16))}, {"output": ("float32", ("n", 3))})


def segmenter() -> ModelProto:
    """Make a segmenter whose scores are those of the colours of each 4×4 pixels, at a quarter of the size."""
    node = helper.make_node("AveragePool", ["x"], ["out"], kernel_shape=[4, 4], strides=[4, 4])
    scaled = helper.make_node("Mul", ["out", "factor"], ["logits"])
    inputs, outputs = {"x": ("float32", (1, 3, 32, 48))}, {"logits": ("float32", (1, 3, 8, 12))}
    return make([node, scaled], inputs, outputs, {"factor": np.float32(20)})


def enlarger() -> ModelProto:
    """Make a network that repeats each pixel, channels first, in the range 0…1."""
    node = helper.make_node(
        "Resize",
        ["x", "", "scales"],
        ["y"],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    scales = np.array([1, 1, 2, 2], np.float32)
    return make([node], {"x": ("float32", ("n", 3, 32, 32))}, {"y": ("float32", ("n", 3, 64, 64))}, {"scales": scales})


def point_finder() -> ModelProto:
    """Make a network of two points: means of red, green; green, blue as x, y in fractions; and their confidences."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Gather", ["means", "colours"], ["coords"], axis=1),
        helper.make_node("Gather", ["means", "first"], ["visible"], axis=1),
    ]
    constants = {"colours": np.array([0, 1, 1, 2]), "first": np.array([0, 1])}
    outputs = {"coords": ("float32", ("n", 4)), "visible": ("float32", ("n", 2))}
    return make(nodes, {"x": ("float32", ("n", 3, 16, 16))}, outputs, constants)


def linear_table(outputs: int, *, input_type: str = "float32") -> ModelProto:
    """Make a network for tables of two numbers: each output is their sum times its position from 1."""
    nodes = [
        helper.make_node("Cast", ["X"], ["numbers"], to=1),
        helper.make_node("MatMul", ["numbers", "weights"], ["Y"]),
    ]
    weights = np.tile(np.arange(1, outputs + 1, dtype=np.float32), (2, 1)) / 10
    return make(nodes, {"X": (input_type, ("n", 2))}, {"Y": ("float32", ("n", outputs))}, {"weights": weights})
