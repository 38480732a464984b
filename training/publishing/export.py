"""From a network to ONNX and TorchScript, and the gate that lets nothing out that does not agree with the network."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from training.publishing.fp16 import store_in_half

OPSET = 20
TOLERANCE = FLOAT32_TOLERANCE["value"]
"""Of the parity gate, for numbers: times the largest magnitude of an output where that is above 1."""
TORCHSCRIPT = "model.ts"
_BATCHES = (1, 2, 7)


@dataclass(frozen=True)
class Parity:
    """What the gate saw.

    Attributes:
        largest: difference between the network and the exported graphs, over all outputs that are numbers and all
            batch sizes; None where no output is.
        agreement: for each output in words, the largest difference between the network and the exported graphs.
        invariance: for each output, the largest difference between a sample's alone and in a batch, in ONNX Runtime
            on a CPU; relative, a share, or levels, as the output's meaning says.
        between_batches: the same in words.
        rounding: for each output in words, how far it is changed by storing the weights in 16 bits; empty where they
            are stored in 32.
        samples: how many real samples were compared.
        batches: the sizes of the batches they were compared in.
    """

    largest: float | None
    agreement: tuple[str, ...]
    invariance: dict[str, float]
    between_batches: tuple[str, ...]
    rounding: tuple[str, ...]
    samples: int
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Artefacts:
    """What is exported.

    Attributes:
        half: the ONNX file's weights are stored in 16 bits.
        torchscript: also model.ts.
    """

    half: bool = True
    torchscript: bool = False


def export(served: nn.Module, task: Task, samples: Arrays, folder: Path, what: Artefacts) -> Parity:
    """Writes model.onnx (and model.ts, if wanted) and compares them with the module on real samples.

    The gate is on the graph in 32 bits; what storing it in 16 changes is measured beside, with a limit of its own.
    Raises CannotTrain where the graph's tensors are not those of the task, or an output differs too much.
    """
    served = served.eval().cpu()
    example = tuple(torch.from_numpy(samples[spec.name][:2].copy()) for spec in task.inputs)
    path = folder / MODEL
    with _quiet():
        torch.onnx.export(
            served,
            example,
            path,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=[spec.name for spec in task.inputs],
            output_names=[spec.name for spec in task.outputs],
            dynamic_shapes=tuple(_dynamic(spec) for spec in task.inputs),
            verbose=False,
        )
        traced = torch.jit.freeze(torch.jit.trace(served, example))  # type: ignore[no-untyped-call]
        if what.torchscript:
            torch.jit.save(traced, folder / TORCHSCRIPT)
    forget_where(path)
    onnx.checker.check_model(path, full_check=True)
    _check_signature(onnx.load(path), task)
    parity = _compared(served, traced, runner(path, task), task, samples)
    if what.half:
        parity = replace(parity, rounding=_halved(path, task, samples))
    invariance = invariance_of(runner(path, task), task, samples, parity.batches)
    words = tuple(describe_difference(spec, invariance[spec.name]) for spec in task.outputs)
    return replace(parity, invariance=invariance, between_batches=words)


def _dynamic(spec: TensorSpec) -> dict[int, str]:
    named = {axis: name for axis, name in enumerate(spec.shape, 1) if isinstance(name, str)}
    return {0: "batch", **named}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's chatter and the notice that TorchScript is deprecated, which is known."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def forget_where(path: Path) -> None:
    """Takes out of the graph what the exporter noted of this machine: stack traces with the paths of its files."""
    model = onnx.load(path)
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.save(model, path)


def _check_signature(model: Any, task: Task) -> None:
    """The graph's inputs and outputs are those the task names, with a named batch axis first."""
    for specs, tensors in ((task.inputs, model.graph.input), (task.outputs, model.graph.output)):
        got = [_described(tensor) for tensor in tensors]
        names = [spec.name for spec in specs]
        if [name for name, _, _ in got] != names:
            raise CannotTrain(f"The exported graph has the tensors {[name for name, _, _ in got]}, not {names}.")
        for spec, (name, dtype, shape) in zip(specs, got, strict=True):
            fits = len(shape) == 1 + len(spec.shape) and shape[0] == "batch"
            fits = fits and all(isinstance(w, str) or w == g for w, g in zip(spec.shape, shape[1:], strict=True))
            if dtype != np.dtype(spec.dtype) or not fits:
                raise CannotTrain(f"The exported graph's {name} is {dtype} {shape}, not {spec.dtype} {spec.shape}.")


def _described(tensor: Any) -> tuple[str, np.dtype[Any], list[int | str]]:
    kind = tensor.type.tensor_type
    shape = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
    return tensor.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type), shape


def runner(path: Path, task: Task) -> Run:
    """Runs the graph at `path` by ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in task.outputs]

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, dict(arrays)), strict=True))

    return run


def _compared(served: nn.Module, traced: Any, run: Run, task: Task, samples: Arrays) -> Parity:
    """Network and graphs side by side. Raises CannotTrain where they disagree."""
    count = len(next(iter(samples.values())))
    apart = dict.fromkeys((spec.name for spec in task.outputs), 0.0)
    sizes = tuple(size for size in (*_BATCHES, count) if size <= count)
    for size in sizes:
        batch = {name: array[:size] for name, array in samples.items()}
        expected = _outputs(served, task, batch)
        for kind, got in (("ONNX", run(batch)), ("TorchScript", _outputs(traced, task, batch))):
            for spec in task.outputs:
                found = _difference(spec, expected[spec.name], got[spec.name])
                _refuse(kind, spec, found, size)
                apart[spec.name] = max(apart[spec.name], found)
    numbers = [apart[spec.name] for spec in task.outputs if spec.kind == "value"]
    words = tuple(describe_difference(spec, apart[spec.name]) for spec in task.outputs)
    return Parity(max(numbers, default=None), words, {}, (), (), count, sizes)


def invariance_of(run: Run, task: Task, samples: Arrays, sizes: Sequence[int]) -> dict[str, float]:
    """How far a sample's outputs differ alone and in company, for the first 16 and in batches of these sizes."""
    few = min(max(sizes), 16)
    alone = [run({name: array[i : i + 1] for name, array in samples.items()}) for i in range(few)]
    batches = (run({name: array[:size] for name, array in samples.items()}) for size in sizes)
    return deviation_in_batches(task.outputs, alone, batches)


def _halved(path: Path, task: Task, samples: Arrays) -> tuple[str, ...]:
    """Stores the weights in 16 bits; how far that changes each output, in words. Raises CannotTrain."""
    few = {name: array[:16] for name, array in samples.items()}
    exact = runner(path, task)(few)
    store_in_half(path)
    rounded = runner(path, task)(few)
    words = []
    for spec in task.outputs:
        found = _difference(spec, exact[spec.name], rounded[spec.name])
        if not found <= FLOAT16_TOLERANCE[spec.kind]:
            raise CannotTrain(
                f"Storing the weights in 16 bits changes {spec.name} by {found:.1e}; at most "
                f"{FLOAT16_TOLERANCE[spec.kind]:g} is accepted. Publish them in 32 bits: --full-precision."
            )
        words.append(describe_difference(spec, found))
    return tuple(words)


def _refuse(kind: str, spec: TensorSpec, found: float, size: int) -> None:
    """Raises CannotTrain where the difference is too large, or not a number."""
    most = FLOAT32_TOLERANCE[spec.kind]
    if not found <= most:
        raise CannotTrain(
            f"{kind} and the network disagree by {found:.1e} in {spec.name} with a batch of {size}; at "
            f"most {most:g} is accepted, so nothing is published."
        )


def _outputs(module: Any, task: Task, batch: Arrays) -> Arrays:
    with torch.no_grad():
        found = module(*(torch.from_numpy(batch[spec.name].copy()) for spec in task.inputs))
    return {spec.name: tensor.numpy() for spec, tensor in zip(task.outputs, found, strict=True)}


def _difference(spec: TensorSpec, expected: Array, got: Array) -> float:
    """How far two outputs lie apart, by what they mean. Raises CannotTrain where they are not of one kind."""
    if problem := spec.mismatch(got):
        raise CannotTrain(f"The exported graph's output is not what the task promises: {problem}.")
    if expected.shape != got.shape:
        raise CannotTrain(f"The exported graph's {spec.name} has shape {got.shape}, the network's {expected.shape}.")
    return output_difference(spec, expected, got)
