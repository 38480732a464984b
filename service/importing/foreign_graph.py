"""Read an ONNX graph that another program exported, free its batch axis, and remove what it says about its machine.

The graph is data from a stranger: its external data is read from the folder of the graph only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from service.importing.errors import CannotImport

_MIN_OPSET = 11
"""The nodes that the import adds exist since this version of the operators."""
_MAX_BYTES = 2**31 - 1
"""Size limit of a file in protobuf's format."""
BATCH = "batch"
_SHAPE_INPUT = {"Reshape": 1, "Expand": 1, "Resize": 3, "ConstantOfShape": 0}
"""Operators that read a shape, and the position of the shape among their inputs."""

Axis = int | str | None


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of the graph: name, numpy dtype, and shape with the batch axis.

    An axis of variable length is a name, or None. The shape is None if the graph does not state it; the dtype is empty
    if it is not a tensor but a sequence or a map.
    """

    name: str
    dtype: str
    shape: tuple[Axis, ...] | None

    def __str__(self) -> str:
        shape = (
            "an unknown shape" if self.shape is None else ", ".join("?" if a is None else str(a) for a in self.shape)
        )
        return f"{self.name}: {self.dtype or 'not a tensor'} ({shape})"


def read_graph(path: Path) -> ModelProto:
    """Read an ONNX file as one model, with its external data, and without comments. Raises CannotImport, OSError."""
    if path.stat().st_size > _MAX_BYTES:
        raise CannotImport(f"{path} has more than 2 GB, which is more than an ONNX file can hold.")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf's own exceptions have no common base class with the others.
        raise CannotImport(f"{path} is not an ONNX file: {_first_line(error)}.") from None
    if not model.graph.node:
        raise CannotImport(f"{path} is not an ONNX file: it contains no graph.")
    _load_external_data(model, path)
    _check_opset(model, path)
    remove_comments(model)
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _check_opset(model: ModelProto, path: Path) -> None:
    opset = opset_of(model)
    newest = onnx.defs.onnx_opset_version()
    if not _MIN_OPSET <= opset <= newest:
        raise CannotImport(
            f"{path} uses version {opset} of the ONNX operators (opset); export it again with one of {_MIN_OPSET} to "
            f"{newest}."
        )


def opset_of(model: ModelProto) -> int:
    """Return the version of the standard operators that a model uses."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _load_external_data(model: ModelProto, path: Path) -> None:
    """Move weights that the exporter wrote into files beside the graph into the model."""
    external = [tensor for tensor in _all_tensors(model) if uses_external_data(tensor)]
    size = 0
    for location in {ExternalDataInfo(tensor).location for tensor in external}:
        file = path.parent / location
        if Path(location).name != location or not file.is_file():
            raise CannotImport(
                f"{path} stores weights in another file, '{location[:200]}', which is not in its folder: copy it "
                "there, or export the graph as a single file."
            )
        size += file.stat().st_size
    if size + path.stat().st_size > _MAX_BYTES:
        raise CannotImport(f"{path} and its weights have more than 2 GB, which is more than a single file can hold.")
    try:
        load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # onnx raises its checker's errors, ValueErrors and others here.
        raise CannotImport(f"The weights of {path} cannot be read: {_first_line(error)}.") from None


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all graphs in its nodes (the branches of an If)."""
    yield graph
    for node in graph.node:
        yield from _graphs_in(node)


def _graphs_in(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.type == AttributeProto.GRAPH else [])):
            yield from _graphs(graph)


def _all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield all constants: initialisers, and tensors in the attributes of nodes."""
    nodes = [node for function in model.functions for node in function.node]
    for graph in _graphs(model.graph):
        yield from graph.initializer
        nodes.extend(graph.node)
    for node in nodes:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t


def remove_comments(model: ModelProto) -> None:
    """Remove comments and metadata: exporters record stack traces there, with paths of the machine."""
    for graph in _graphs(model.graph):
        for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
            _clear_comments(part)
    for function in model.functions:
        for part in (function, *function.node, *function.value_info):
            _clear_comments(part)
    _clear_comments(model)


def _clear_comments(part: Any) -> None:
    part.doc_string = ""
    del part.metadata_props[:]


def inputs_of(model: ModelProto) -> tuple[GraphTensor, ...]:
    """Return the graph's inputs, without the weights that old exporters list among them."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(_describe(value) for value in model.graph.input if value.name not in weights)


def outputs_of(model: ModelProto) -> tuple[GraphTensor, ...]:
    """Return the graph's outputs."""
    return tuple(_describe(value) for value in model.graph.output)


def _describe(value: Any) -> GraphTensor:
    if not value.type.HasField("tensor_type"):
        return GraphTensor(value.name, "", None)
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return GraphTensor(value.name, _dtype(tensor.elem_type), None)
    shape = tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else axis.dim_param or None
        for axis in tensor.shape.dim
    )
    return GraphTensor(value.name, _dtype(tensor.elem_type), shape)


def _dtype(element_type: int) -> str:
    try:
        return str(helper.tensor_dtype_to_np_dtype(element_type))
    except (KeyError, TypeError):
        return "an unknown type"


def fixed_batch(model: ModelProto) -> int | None:
    """Return the batch size that the graph is fixed to; None if its batch axis is variable."""
    sizes = [tensor.shape[0] for tensor in inputs_of(model) if tensor.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def with_free_batch(model: ModelProto) -> ModelProto:
    """Return a copy whose first axis is variable in every input, whatever batch size it was exported for.

    Constant shapes that begin with the exported size (of a Reshape, an Expand, a Resize) are freed too.
    Whether the result computes the same is for the caller to check.
    """
    size = fixed_batch(model)
    freed = ModelProto()
    freed.CopyFrom(model)
    del freed.graph.value_info[:]
    weights = {tensor.name for tensor in freed.graph.initializer}
    for value in freed.graph.input:
        if value.name not in weights and value.type.HasField("tensor_type"):
            _free_first_axis(value)
    for value in freed.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    if size is not None:
        _free_shapes(freed.graph, size)
    return freed


def _free_first_axis(value: Any) -> None:
    axes = value.type.tensor_type.shape.dim
    if axes:
        axes[0].Clear()
        axes[0].dim_param = BATCH


def _free_shapes(graph: GraphProto, size: int) -> None:
    """Replace the exported batch size at the start of constant shapes by that of the first input."""
    constants = _constants(graph)
    from_input = _tensors_from_inputs(graph, constants)
    nodes = list(graph.node)
    del graph.node[:]
    freed = _FreedShapes(graph, _add_batch_size(graph))
    for node in nodes:
        position = _SHAPE_INPUT.get(node.op_type)
        if node.op_type == "Concat" and size == 1 and from_input & set(node.input):
            _expand_constants(node, constants, freed)
        elif position is not None and len(node.input) > position and node.input[position] in constants:
            shape = numpy_helper.to_array(constants[node.input[position]])
            # Weights that are reshaped have no batch axis; a constant that is expanded may get one.
            is_free = node.op_type in ("Expand", "ConstantOfShape") or node.input[0] in from_input
            if is_free and shape.ndim == 1 and len(shape) and shape[0] == size:
                # Other nodes may use the same constant for something else: it stays as it is.
                node.input[position] = freed.add(shape[1:].tolist())
        graph.node.append(node)


@dataclass(frozen=True)
class _FreedShapes:
    """Adds shapes to a graph that start with the size of its batch."""

    graph: GraphProto
    batch: str

    def add(self, rest: Sequence[int]) -> str:
        """Append a node that computes the shape (batch, *rest), and return its name."""
        name = f"imported_shape_{len(self.graph.node)}_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(rest, np.int64), f"{name}_rest"))
        self.graph.node.append(helper.make_node("Concat", [self.batch, f"{name}_rest"], [name], axis=0))
        return name


def _expand_constants(node: NodeProto, constants: Mapping[str, TensorProto], freed: _FreedShapes) -> None:
    """Repeat constants (a class token) for each sample of the batch that they are concatenated with."""
    axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
    for position, name in enumerate(node.input):
        dims = list(constants[name].dims) if name in constants else []
        if len(dims) > 1 and dims[0] == 1 and axis not in (0, -len(dims)):
            expanded = freed.add(dims[1:]) + "_expanded"
            freed.graph.node.append(helper.make_node("Expand", [name, freed.graph.node[-1].output[0]], [expanded]))
            node.input[position] = expanded


def _constants(graph: GraphProto) -> dict[str, TensorProto]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return constants | {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }


def _tensors_from_inputs(graph: GraphProto, constants: Mapping[str, TensorProto]) -> set[str]:
    """Return the names of all tensors that depend on an input. Nodes are in an order in which they can be computed."""
    known = {value.name for value in graph.input if value.name not in constants}
    for node in graph.node:
        if known & set(node.input):
            known |= set(node.output)
    return known


def _add_batch_size(graph: GraphProto) -> str:
    """Add nodes that compute the batch size, int64 (1,)."""
    weights = {tensor.name for tensor in graph.initializer}
    first = next(value.name for value in graph.input if value.name not in weights)
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "imported_zero"))
    graph.node.append(helper.make_node("Shape", [first], ["imported_axes"]))
    graph.node.append(helper.make_node("Gather", ["imported_axes", "imported_zero"], ["imported_batch"], axis=0))
    return "imported_batch"


def describe_tensors(tensors: Sequence[GraphTensor]) -> str:
    """Return the names, types and shapes of tensors for a message."""
    return "; ".join(map(str, tensors)) or "none"
