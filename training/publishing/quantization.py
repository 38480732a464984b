"""Graphs of lower precision: in 16-bit floating point, and in 8-bit integers by static quantisation.

Static quantisation measures the range of each activation on calibration samples and maps it to 8 bits; weights have a
scale per channel (Jacob et al. 2018, https://arxiv.org/abs/1712.05877). The work is done by onnxruntime.quantization;
this module prepares the graph and chooses which layers stay in floating point.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tasks.contract import Array, Arrays, Task, TensorSpec, count_samples
from training.core.errors import CannotTrain
from training.publishing.export import onnx_runner, strip_machine_details
from training.publishing.fp16 import STORED_SUFFIX, store_as_fp16

MAX_ERROR = 0.1
"""Largest error of a quantised graph's outputs (`output_error`): a signal-to-noise ratio of 20 dB."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights: almost all of the arithmetic."""
_BETWEEN = ("Add", "Clip", "Relu", "Concat", "Resize", "DepthToSpace", "MaxPool", "GlobalAveragePool")
"""Operators between them, which keep the activations in 8 bits."""
_IN_FLOAT32 = ("LayerNormalization", "Softmax", "LogSoftmax", "Exp", "Pow", "Softplus", "ReduceSum", "ReduceMean")
"""Operators whose results would overflow, or lose most of their digits, in 16 bits."""
_RANKING_SAMPLES = 32
"""Samples by which layers are ranked, one by one."""
_RUN = 16
"""Samples in a run on calibration samples."""


@dataclass(frozen=True)
class QuantizedGraph:
    """A quantised graph.

    Attributes:
        path: its file.
        error: the largest of its outputs' on samples that were not used to calibrate it; see `output_error`.
        float_layers: names of the layers that stay in floating point, the most sensitive first.
        layers: number of all layers with weights.
    """

    path: Path
    error: float
    float_layers: tuple[str, ...]
    layers: int


def convert_to_fp16(graph: Path, target: Path) -> None:
    """Write the graph with 16-bit arithmetic; its inputs and outputs keep their types."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(graph)
    unpack_weights(model)
    with _quiet():
        converted = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_IN_FLOAT32]
        )
    onnx.save(converted, target)
    strip_machine_details(target)


def unpack_weights(model: onnx.ModelProto) -> None:
    """Undo `store_as_fp16`: weights that are stored in 16 bits become constants in 32 bits, without a cast."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored]
    for cast in casts:
        values = numpy_helper.to_array(stored[cast.input[0]]).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, cast.output[0]))
        graph.node.remove(cast)
    used = {name for node in graph.node for name in node.input}
    for name, tensor in stored.items():
        if name not in used and name.endswith(STORED_SUFFIX):
            graph.initializer.remove(tensor)


def quantize(graph: Path, task: Task, calibration: Arrays, selection: Arrays, target: Path) -> QuantizedGraph:
    """Quantise the graph to 8 bits and write it to `target`.

    If the error of an output on the samples `selection` exceeds MAX_ERROR, the layers are ranked by the error that each
    causes alone, and more and more of the worst stay in floating point: none, 1, 2, 4, … until the error is small
    enough, or half of them do. The graph with the smallest error is kept then. All outputs count: probabilities alone
    say little of training samples, of which a network is certain.

    Raises CannotTrain if the graph has no layers to quantise.
    """
    with tempfile.TemporaryDirectory(prefix="quantize-") as name, _quiet():
        quantizer = _Quantizer(Path(name), graph, task, calibration, selection)
        return quantizer.search(target)


class _Quantizer:
    """Quantises a graph again and again, with different layers in floating point; it is calibrated once."""

    def __init__(self, folder: Path, graph: Path, task: Task, calibration: Arrays, selection: Arrays) -> None:
        self._folder, self._task, self._selection = folder, task, selection
        self._prepared = folder / "prepared.onnx"
        self._calibration = calibration
        self._expected = _run(graph, task, selection)
        self._ranking = {name: array[:_RANKING_SAMPLES] for name, array in selection.items()}
        _prepare(graph, self._prepared)
        model = onnx.load(self._prepared)
        constants = {tensor.name for tensor in model.graph.initializer}
        self._layers = [
            node.name for node in model.graph.node if node.op_type in _LAYERS and node.input[1] in constants
        ]
        if not self._layers:
            raise CannotTrain("The graph has no layers with constant weights, so there is nothing to quantise.")
        self._between = [
            node.name
            for node in model.graph.node
            if node.op_type in _BETWEEN and not (node.op_type == "Add" and set(node.input) & constants)
        ]

    def search(self, target: Path) -> QuantizedGraph:
        best = self._quantize(())
        count, ranked = 1, list[str]()
        while best.error > MAX_ERROR and count <= len(self._layers) // 2:
            ranked = ranked or self._rank()
            candidate = self._quantize(tuple(ranked[:count]))
            best = min(best, candidate, key=lambda graph: graph.error)
            count *= 2
        best.path.replace(target)
        store_as_fp16(target)  # Of the layers that stay in floating point, and of embeddings.
        return QuantizedGraph(target, best.error, best.float_layers, len(self._layers))

    def _rank(self) -> list[str]:
        """Return the layers by the error that each causes if it alone is quantised, largest first."""
        errors = {}
        for layer in self._layers:
            others = tuple(name for name in self._layers if name != layer)
            errors[layer] = self._quantize(others, between=False, samples=self._ranking).error
        return sorted(self._layers, key=lambda name: errors[name], reverse=True)

    def _quantize(
        self, float_layers: tuple[str, ...], *, between: bool = True, samples: Arrays | None = None
    ) -> QuantizedGraph:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        path = self._folder / f"{len(float_layers)}-{int(between)}.onnx"
        wanted = [name for name in self._layers if name not in float_layers]
        quantize_static(
            self._prepared,
            path,
            _Samples(self._calibration),
            calibration_cache_path=self._folder / "ranges.json",
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_LAYERS, *_BETWEEN],
            nodes_to_quantize=wanted + (self._between if between else []),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        strip_machine_details(path)
        outputs = _run(path, self._task, samples or self._selection)
        error = max(
            output_error(spec, self._expected[spec.name][: len(outputs[spec.name])], outputs[spec.name])
            for spec in self._task.outputs
        )
        return QuantizedGraph(path, error, float_layers, len(self._layers))


def _prepare(graph: Path, target: Path) -> None:
    """Write the graph with constants folded, normalisation fused into convolutions, and the shapes of all tensors."""
    from onnxruntime.quantization import quant_pre_process

    model = onnx.load(graph)
    unpack_weights(model)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"  # Layers are chosen by their names, which the exporter repeats.
    unpacked = target.with_suffix(".unpacked.onnx")
    onnx.save(model, unpacked)
    quant_pre_process(unpacked, target, skip_symbolic_shape=True)


class _Samples:
    """Calibration samples as onnxruntime.quantization reads them: batch by batch, then None."""

    def __init__(self, arrays: Arrays) -> None:
        self._batches: Iterator[dict[str, Array]] = iter(list(_batches(arrays)))

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def _batches(arrays: Arrays) -> Iterator[dict[str, Array]]:
    for start in range(0, count_samples(arrays), _RUN):
        yield {name: array[start : start + _RUN] for name, array in arrays.items()}


def _run(graph: Path, task: Task, arrays: Arrays) -> Arrays:
    """Return the outputs of a graph for these samples."""
    run = onnx_runner(graph, task)
    batches = [run(batch) for batch in _batches(arrays)]
    return {spec.name: np.concatenate([batch[spec.name] for batch in batches]) for spec in task.outputs}


def output_error(spec: TensorSpec, expected: Array, actual: Array) -> float:
    """Return the error of an output, from 0 (none).

    Classes: the fraction of elements that differ. Values and pixels: the root of the mean squared difference, divided
    by the standard deviation of the expected values over the samples; an output that does not depend on its input has
    an error of 1. NaN counts as infinite.
    """
    if spec.kind == "class":
        return float((expected != actual).mean())
    wanted, got = expected.astype(np.float64), actual.astype(np.float64)
    spread = float(wanted.var(axis=0).mean())
    difference = float(((wanted - got) ** 2).mean())
    if not np.isfinite(difference):
        return float("inf")
    return float(np.sqrt(difference / spread)) if spread > 0 else float(difference > 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what the library logs and prints about each of its steps."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
