"""Graphs of tiny models, made with onnx alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import NodeProto, ValueInfoProto, helper, numpy_helper

from tasks.contract import Task, TensorSpec


def build_graph(task: Task, nodes: Sequence[NodeProto], constants: Mapping[str, ArrayLike]) -> bytes:
    """Return the serialised graph of these nodes, with the inputs and outputs of the task."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [_value_info(spec) for spec in task.inputs],
        [_value_info(spec) for spec in task.outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def zeros_graph(task: Task) -> bytes:
    """Return a graph whose outputs are all zero, for a task without a tiny model of its own.

    An axis of variable length in an output is as long as the axis of that name in the inputs, or 1 if there is none.
    """
    nodes: list[NodeProto] = []
    constants: dict[str, ArrayLike] = {}
    variable_axes = {"batch": (task.inputs[0].name, 0)}
    for spec in task.inputs:
        variable_axes |= {axis: (spec.name, i) for i, axis in enumerate(spec.shape, 1) if isinstance(axis, str)}
    for output in task.outputs:
        lengths = []
        for i, axis in enumerate(("batch", *output.shape)):
            length = f"{output.name}_length_{i}"
            lengths.append(length)
            if axis in variable_axes:
                source, position = variable_axes[str(axis)]
                nodes.append(helper.make_node("Shape", [source], [length], start=position, end=position + 1))
            else:
                constants[length] = np.array([axis if isinstance(axis, int) else 1], np.int64)
        zero = numpy_helper.from_array(np.zeros(1, output.dtype))
        nodes.append(helper.make_node("Concat", lengths, [f"{output.name}_shape"], axis=0))
        nodes.append(helper.make_node("ConstantOfShape", [f"{output.name}_shape"], [output.name], value=zero))
    return build_graph(task, nodes, constants)


def _value_info(spec: TensorSpec) -> ValueInfoProto:
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, element_type, ["batch", *spec.shape])
