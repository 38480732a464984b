"""Add nodes before and after a graph, to adapt it to the inputs and outputs of a task."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.compose import add_prefix

from service.importing.foreign_graph import BATCH, opset_of
from tasks.contract import TensorSpec

PREFIX = "imported/"
_SHAPE_ONLY = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"}
"""Operators that only move values, so that what comes before them decides what the values mean."""
_NEW_REDUCTIONS = 18
"""The version of the operators since which ReduceMax takes its axes as an input."""


class GraphEditor:
    """A copy of a graph whose own names start with a prefix, so that those of new nodes cannot collide with them."""

    def __init__(self, model: ModelProto) -> None:
        self._model: ModelProto = add_prefix(model, PREFIX)
        self._before: list[NodeProto] = []
        self._after: list[NodeProto] = []
        self._opset = opset_of(model)
        self._count = 0
        self._is_after = False

    @staticmethod
    def inside(name: str) -> str:
        """Return the name in the copy of a tensor of the original graph."""
        return PREFIX + name

    def replace_inputs(self, specs: tuple[TensorSpec, ...]) -> None:
        """Declare new inputs instead of the graph's own, which nodes must then compute; nodes now follow the graph."""
        weights = {tensor.name for tensor in self._model.graph.initializer}
        kept = [value for value in self._model.graph.input if value.name in weights]
        del self._model.graph.input[:]
        self._model.graph.input.extend([*(_value_info(spec) for spec in specs), *kept])
        self._is_after = True

    def replace_outputs(self, specs: tuple[TensorSpec, ...]) -> None:
        """Declare new outputs instead of the graph's own, which nodes must then compute."""
        del self._model.graph.output[:]
        self._model.graph.output.extend(_value_info(spec) for spec in specs)

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return the name of the output."""
        self._count += 1
        output = output or f"{operator.lower()}_{self._count}"
        node = helper.make_node(operator, list(inputs), [output], name=f"adapt_{self._count}", **attributes)
        (self._after if self._is_after else self._before).append(node)
        return output

    def constant(self, values: ArrayLike) -> str:
        """Add a constant, and return its name."""
        self._count += 1
        name = f"constant_{self._count}"
        self._model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def cast(self, tensor: str, dtype: str) -> str:
        """Convert a tensor to a numpy dtype."""
        return self.add("Cast", tensor, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def clip(self, tensor: str, low: float, high: float) -> str:
        """Limit float32 values to a range."""
        return self.add("Clip", tensor, self.constant(np.float32(low)), self.constant(np.float32(high)))

    def max_over_last(self, tensor: str) -> str:
        """Return the maximum over the last axis, which is removed."""
        if self._opset < _NEW_REDUCTIONS:
            return self.add("ReduceMax", tensor, axes=[-1], keepdims=0)
        return self.add("ReduceMax", tensor, self.constant(np.array([-1], np.int64)), keepdims=0)

    def reshape(self, tensor: str, *shape: int) -> str:
        """Change the shape; -1 is the batch axis."""
        return self.add("Reshape", tensor, self.constant(np.array(shape, np.int64)))

    def last_operator(self, tensor: str) -> str:
        """Return the operator of the graph that computes a tensor, disregarding those that only move values."""
        producers = {output: node for node in self._model.graph.node for output in node.output}
        while (node := producers.get(tensor)) is not None and node.op_type in _SHAPE_ONLY:
            tensor = node.input[0]
        return node.op_type if node is not None else ""

    def model(self) -> ModelProto:
        """Return the graph with all nodes in order."""
        result = ModelProto()
        result.CopyFrom(self._model)
        del result.graph.node[:]
        result.graph.node.extend([*self._before, *self._model.graph.node, *self._after])
        return result


def _value_info(spec: TensorSpec) -> Any:
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, element_type, [BATCH, *spec.shape])
