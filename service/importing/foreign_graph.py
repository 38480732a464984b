"""Read an ONNX graph that another program exported, free its batch axis, and remove what it says about its machine.

The graph is data from a stranger: its external data is read from the folder of the graph only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from service.importing.errors import CannotImport

_MIN_OPSET = 11
"""The nodes that the import adds exist since this version of the operators."""
_MAX_BYTES = 2**31 - 1
"""Size limit of a file in protobuf's format."""
BATCH = "batch"

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
        return str(onnx.helper.tensor_dtype_to_np_dtype(element_type))
    except (KeyError, TypeError):
        return "an unknown type"


def fixed_batch(model: ModelProto) -> int | None:
    """Return the batch size that the graph is fixed to; None if its batch axis is variable."""
    sizes = [tensor.shape[0] for tensor in inputs_of(model) if tensor.shape]
    return next((size for size in sizes if isinstance(size, int)), None)


def with_free_batch(model: ModelProto) -> ModelProto:
    """Return a copy whose first axis is variable in every input, whatever batch size it was exported for.

    The shapes that lead a Reshape or an Expand back to the exported size are freed too, as far as they are constants.
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
        _free_reshapes(freed.graph, size)
    return freed


def _free_first_axis(value: Any) -> None:
    axes = value.type.tensor_type.shape.dim
    if axes:
        axes[0].Clear()
        axes[0].dim_param = BATCH


def _free_reshapes(graph: GraphProto, size: int) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]])
        if shape.ndim == 1 and len(shape) and shape[0] == size and -1 not in shape:
            # Other nodes may use the same constant for something else.
            freed = numpy_helper.from_array(np.array([-1, *shape[1:]], np.int64), f"freed_shape_{number}")
            graph.initializer.append(freed)
            node.input[1] = freed.name


def describe_tensors(tensors: Sequence[GraphTensor]) -> str:
    """Return the names, types and shapes of tensors for a message."""
    return "; ".join(map(str, tensors)) or "none"
