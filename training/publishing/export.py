"""Export a network to ONNX and TorchScript, and check that the exported graphs agree with the network."""

import io
import logging
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from tasks.contract import Array, Arrays, Run, Task, TensorSpec
from tasks.deviation import (
    FLOAT16_TOLERANCE,
    FLOAT32_TOLERANCE,
    describe_difference,
    deviation_in_batches,
    output_difference,
)
from tasks.manifest import MODEL
from training.core.errors import CannotTrain
from training.publishing.fp16 import store_as_fp16

OPSET = 20
TOLERANCE = FLOAT32_TOLERANCE["value"]
"""Tolerance of the parity check for numbers; multiplied by an output's largest magnitude where that exceeds 1."""
TORCHSCRIPT = "model.ts"
_BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Parity:
    """The result of the parity check.

    Attributes:
        largest: the largest difference between the network and the exported graphs, over all numeric outputs and all
            batch sizes; None if no output is numeric.
        agreement: per output, in words: the largest difference between the network and the exported graphs.
        invariance: per output: the largest difference between a sample's output alone and in a batch, in ONNX Runtime
            on a CPU; relative, a fraction, or levels, depending on the output's kind.
        batch_deviation: the same in words.
        rounding: per output, in words: the change caused by storing the weights in 16 bits; empty if they are stored in
            32.
        samples: number of real samples that were compared.
        batches: the batch sizes they were compared with.
    """

    largest: float | None
    agreement: tuple[str, ...]
    invariance: dict[str, float]
    batch_deviation: tuple[str, ...]
    rounding: tuple[str, ...]
    samples: int
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Artefacts:
    """What to export.

    Attributes:
        fp16: whether the weights of the ONNX file are stored in 16 bits.
        torchscript: whether to write model.ts too.
    """

    fp16: bool = True
    torchscript: bool = False


@dataclass(frozen=True)
class Export:
    """The exported files of a trained network.

    Attributes:
        folder: the folder with model.onnx (and model.ts).
        task: the calibrated task, whose inputs and outputs are those of the graph.
        parity: how much the files differ from the network.
    """

    folder: Path
    task: Task
    parity: Parity

    @cached_property
    def network(self) -> "ExportedNetwork":
        """The graph as a module."""
        return ExportedNetwork(self.folder / MODEL, self.task)


def export_to_folder(served: nn.Module, task: Task, samples: Arrays, folder: Path, artefacts: Artefacts) -> Export:
    """Export into a folder, whose earlier content is removed. Raises what `export` raises; nothing is left then."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        return Export(folder, task, export(served, task, samples, folder, artefacts))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def export(served: nn.Module, task: Task, samples: Arrays, folder: Path, artefacts: Artefacts) -> Parity:
    """Write model.onnx (and model.ts, if requested) and compare them with the module on real samples.

    The graph is compared in 32 bits; the change caused by storing it in 16 is measured separately, with its own limit.
    Raises CannotTrain if the graph's tensors are not those of the task, or an output differs too much.
    """
    served = served.eval().cpu()
    example = tuple(torch.from_numpy(samples[spec.name][:2].copy()) for spec in task.inputs)
    path = folder / MODEL
    with _without_exporter_output():
        torch.onnx.export(
            served,
            example,
            path,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=[spec.name for spec in task.inputs],
            output_names=[spec.name for spec in task.outputs],
            dynamic_shapes=tuple(_dynamic_axes(spec) for spec in task.inputs),
            verbose=False,
        )
        traced = torch.jit.freeze(torch.jit.trace(served, example))  # type: ignore[no-untyped-call]
        if artefacts.torchscript:
            (folder / TORCHSCRIPT).write_bytes(_torchscript(traced))
    strip_machine_details(path)
    onnx.checker.check_model(path, full_check=True)
    _check_signature(onnx.load(path), task)
    parity = _check_parity(served, traced, onnx_runner(path, task), task, samples)
    if artefacts.fp16:
        parity = replace(parity, rounding=_convert_to_fp16(path, task, samples))
    invariance = measure_batch_invariance(onnx_runner(path, task), task, samples, parity.batches)
    words = tuple(describe_difference(spec, invariance[spec.name]) for spec in task.outputs)
    return replace(parity, invariance=invariance, batch_deviation=words)


def _dynamic_axes(spec: TensorSpec) -> dict[int, str]:
    named = {axis: name for axis, name in enumerate(spec.shape, 1) if isinstance(name, str)}
    return {0: "batch", **named}


@contextmanager
def _without_exporter_output() -> Iterator[None]:
    """Suppress the exporter's messages and the warning that TorchScript is deprecated."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def strip_machine_details(path: Path) -> None:
    """Remove what the exporter recorded about this machine: stack traces with paths of its files."""
    model = onnx.load(path)
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.save(model, path)


def _torchscript(traced: Any) -> bytes:
    """Return the file of a traced network, without the source positions, which contain paths of this machine.

    It is made in memory: torch aborts the process if it writes to a full disk.
    """
    complete, stripped = io.BytesIO(), io.BytesIO()
    torch.jit.save(traced, complete)
    with zipfile.ZipFile(complete) as old, zipfile.ZipFile(stripped, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(entry.filename, old.read(entry))
    return stripped.getvalue()


def _check_signature(model: Any, task: Task) -> None:
    """Check that the graph has the task's inputs and outputs, with a named batch axis first. Raises CannotTrain."""
    for specs, tensors in ((task.inputs, model.graph.input), (task.outputs, model.graph.output)):
        actual = [_describe_tensor(tensor) for tensor in tensors]
        names = [spec.name for spec in specs]
        if [name for name, _, _ in actual] != names:
            raise CannotTrain(f"The exported graph has the tensors {[name for name, _, _ in actual]}, not {names}.")
        for spec, (name, dtype, shape) in zip(specs, actual, strict=True):
            matches = len(shape) == 1 + len(spec.shape) and shape[0] == "batch"
            matches = matches and all(
                isinstance(wanted, str) or wanted == axis for wanted, axis in zip(spec.shape, shape[1:], strict=True)
            )
            if dtype != np.dtype(spec.dtype) or not matches:
                raise CannotTrain(f"The exported graph's {name} is {dtype} {shape}, not {spec.dtype} {spec.shape}.")


def _describe_tensor(tensor: Any) -> tuple[str, np.dtype[Any], list[int | str]]:
    tensor_type = tensor.type.tensor_type
    shape = [axis.dim_param or axis.dim_value for axis in tensor_type.shape.dim]
    return tensor.name, onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type), shape


def onnx_runner(path: Path, task: Task, *, optimised: bool = True) -> Run:
    """Load the graph at `path` into ONNX Runtime on the CPU; return a function that runs it."""
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in task.outputs]

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, dict(arrays)), strict=True))

    return run


class ExportedNetwork(nn.Module):
    """The exported graph as a module: from tensors of the task's inputs, in order, to a tuple of its outputs.

    What is published about a model is measured with its file, whose weights may be stored in 16 bits.
    """

    def __init__(self, path: Path, task: Task) -> None:
        super().__init__()
        self._run = onnx_runner(path, task)
        self._inputs = [spec.name for spec in task.inputs]
        self._outputs = [spec.name for spec in task.outputs]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of a batch."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in zip(self._inputs, inputs, strict=True)}
        outputs = self._run(arrays)
        return tuple(torch.from_numpy(outputs[name]) for name in self._outputs)


def _check_parity(served: nn.Module, traced: Any, run: Run, task: Task, samples: Arrays) -> Parity:
    """Compare the network with the exported graphs. Raises CannotTrain if they disagree."""
    count = len(next(iter(samples.values())))
    largest = dict.fromkeys((spec.name for spec in task.outputs), 0.0)
    sizes = tuple(size for size in (*_BATCHES, count) if size <= count)
    for size in sizes:
        batch = {name: array[:size] for name, array in samples.items()}
        expected = _outputs(served, task, batch)
        for name, outputs in (("ONNX", run(batch)), ("TorchScript", _outputs(traced, task, batch))):
            for spec in task.outputs:
                deviation = _difference(spec, expected[spec.name], outputs[spec.name])
                _check_deviation(name, spec, deviation, size)
                largest[spec.name] = max(largest[spec.name], deviation)
    numbers = [largest[spec.name] for spec in task.outputs if spec.kind == "value"]
    words = tuple(describe_difference(spec, largest[spec.name]) for spec in task.outputs)
    return Parity(max(numbers, default=None), words, {}, (), (), count, sizes)


def measure_batch_invariance(run: Run, task: Task, samples: Arrays, sizes: Sequence[int]) -> dict[str, float]:
    """Return how much the outputs of the first 16 samples differ alone and in batches of these sizes."""
    count = min(max(sizes), 16)
    alone = [run({name: array[i : i + 1] for name, array in samples.items()}) for i in range(count)]
    batches = (run({name: array[:size] for name, array in samples.items()}) for size in sizes)
    return deviation_in_batches(task.outputs, alone, batches)


def _convert_to_fp16(path: Path, task: Task, samples: Arrays) -> tuple[str, ...]:
    """Store the weights in 16 bits; return how much that changes each output, in words. Raises CannotTrain."""
    first = {name: array[:16] for name, array in samples.items()}
    exact = onnx_runner(path, task)(first)
    store_as_fp16(path)
    rounded = onnx_runner(path, task)(first)
    words = []
    for spec in task.outputs:
        deviation = _difference(spec, exact[spec.name], rounded[spec.name])
        if not deviation <= FLOAT16_TOLERANCE[spec.kind]:
            raise CannotTrain(
                f"Storing the weights in 16 bits changes {spec.name} by {deviation:.1e}; the limit is "
                f"{FLOAT16_TOLERANCE[spec.kind]:g}. Publish them in 32 bits with --full-precision."
            )
        words.append(describe_difference(spec, deviation))
    return tuple(words)


def _check_deviation(exported: str, spec: TensorSpec, deviation: float, size: int) -> None:
    """Raise CannotTrain if the deviation is too large, or NaN."""
    limit = FLOAT32_TOLERANCE[spec.kind]
    if not deviation <= limit:
        raise CannotTrain(
            f"Not published: {exported} and the network disagree by {deviation:.1e} in {spec.name} with a batch of "
            f"{size}; the limit is {limit:g}."
        )


def _outputs(module: Any, task: Task, batch: Arrays) -> Arrays:
    with torch.no_grad():
        tensors = module(*(torch.from_numpy(batch[spec.name].copy()) for spec in task.inputs))
    return {spec.name: tensor.numpy() for spec, tensor in zip(task.outputs, tensors, strict=True)}


def _difference(spec: TensorSpec, expected: Array, actual: Array) -> float:
    """Return the deviation of an output, by its kind. Raises CannotTrain if it has another shape or type."""
    if problem := spec.mismatch(actual):
        raise CannotTrain(f"The exported graph's output is not what the task declares: {problem}.")
    if expected.shape != actual.shape:
        raise CannotTrain(f"The exported graph's {spec.name} has shape {actual.shape}, the network's {expected.shape}.")
    return output_difference(spec, expected, actual)
