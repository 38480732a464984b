"""Adapt a foreign graph to a task, and check that it then behaves as the service expects of every graph."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import ModelProto

from service.backends.base import Backend, BackendError
from service.backends.onnx import OnnxRuntime
from service.importing.conventions import Conventions
from service.importing.editor import PREFIX, GraphEditor
from service.importing.errors import CannotImport
from service.importing.foreign_graph import fixed_batch, inputs_of, opset_of, with_free_batch
from service.importing.inputs import connect_inputs
from service.importing.outputs import RawOutputs, connect_outputs
from service.importing.samples import SAMPLES, varied_samples
from tasks.contract import Array, Arrays, Task
from tasks.deviation import FLOAT32_TOLERANCE, describe_difference, deviation_in_batches

_BATCHES = (1, 2, 7, SAMPLES)
_MAX_REASON = 300
_NODE_FAILURE = re.compile(r"running (\w+) node\. Name:'([^']*)' Status Message: (.*)")
_SOURCE_PLACE = re.compile(r"^\S+:\d+ [\w:~]+(\([^)]*\))? ")


@dataclass(frozen=True)
class Adapted:
    """A graph with the inputs and outputs of a task.

    Attributes:
        graph: the content of its ONNX file.
        backend: the graph, loaded on the CPU.
        opset: the version of the operators that it uses.
        invariance: for each output, the largest difference between a sample alone and in a batch.
        notes: what was assumed about the graph, in sentences.
    """

    graph: bytes
    backend: Backend
    opset: int
    invariance: Mapping[str, float]
    notes: tuple[str, ...]


def adapt_graph(
    model: ModelProto, task_name: str, task: Task, conventions: Conventions, requests: Sequence[Mapping[str, object]]
) -> Adapted:
    """Return the graph as the task needs it, checked on samples. Raises CannotImport."""
    samples = varied_samples(task, requests)
    size = fixed_batch(model)
    free = with_free_batch(model)
    notes = []
    if size is not None:
        _check_freed(model, free, size)
        notes.append(f"The graph was exported for batches of {size}; its batch axis is now variable.")
    editor = GraphEditor(free)
    notes += connect_inputs(editor, inputs_of(free), task, conventions)
    raw = RawOutputs(editor, _run_raw(editor, samples), conventions, notes)
    connect_outputs(task_name, task, raw)
    adapted = editor.model()
    deviation = _check_batches(_session(adapted), task, samples)
    graph = adapted.SerializeToString()
    try:
        backend = OnnxRuntime("cpu")(graph, task.inputs, task.outputs)
    except BackendError as error:
        raise CannotImport(f"The adapted graph cannot be loaded: {_one_line(error)}.") from None
    return Adapted(graph, backend, opset_of(model), deviation, tuple(notes))


def _one_line(error: Exception) -> str:
    """Return the essence of an ONNX Runtime error, which has several lines and places in its own sources."""
    text = " ".join(str(error).split())
    if failure := _NODE_FAILURE.search(text):
        text = f"{failure[1]} '{failure[2].removeprefix(PREFIX)}': {_SOURCE_PLACE.sub('', failure[3])}"
    return text.rpartition("] : ")[2][:_MAX_REASON].rstrip(". ")


def _session(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # The runtime's exceptions have no other common base class.
        version = onnxruntime.__version__
        raise CannotImport(f"ONNX Runtime {version} cannot load the graph: {_one_line(error)}.") from None


def _check_freed(model: ModelProto, free: ModelProto, size: int) -> None:
    """Check that the graph with a variable batch axis computes what the exported one does. Raises CannotImport."""
    session, random = _session(model), np.random.default_rng(0)
    arrays = {}
    for tensor in inputs_of(model):
        shape = [axis if isinstance(axis, int) else 8 for axis in tensor.shape or ()]
        arrays[tensor.name] = random.uniform(0, 1, shape).astype(tensor.dtype)
    try:
        expected = session.run(None, arrays)
        actual = _session(free).run(None, arrays)
        is_equal = all(map(_is_close, expected, actual))
    except Exception as error:  # As in `_session`.
        raise CannotImport(_fixed_message(size, _one_line(error))) from None
    if not is_equal:
        raise CannotImport(_fixed_message(size, "with a variable one it computes something else"))


def _is_close(expected: Array, actual: Array) -> bool:
    return expected.shape == actual.shape and bool(np.allclose(expected, actual, rtol=1e-4, atol=1e-5, equal_nan=True))


def _fixed_message(size: int, reason: str) -> str:
    return (
        f"The graph was exported for batches of {size} and does not work with others: export it with a dynamic batch "
        f"axis ({reason})."
    )


def _run_raw(editor: GraphEditor, samples: Arrays) -> dict[str, Array]:
    """Return the outputs of the graph as it was exported, for each sample alone, stacked."""
    model = editor.model()
    session = _session(model)
    names = [output.name for output in model.graph.output]
    if unusable := [output.name for output in session.get_outputs() if not output.type.startswith("tensor(")]:
        name = unusable[0].removeprefix(editor.inside(""))
        raise CannotImport(
            f"The graph's output '{name}' is a sequence or a map, not a tensor: export it without (zipmap=False in "
            "skl2onnx)."
        )
    runs = []
    for i in range(SAMPLES):
        one = {name: array[i : i + 1] for name, array in samples.items()}
        try:
            runs.append(session.run(names, one))
        except Exception as error:  # As in `_session`.
            raise CannotImport(f"The graph fails on an example of the task: {_one_line(error)}.") from None
    stacked = {}
    for name, values in zip(names, zip(*runs, strict=True), strict=True):
        if all(np.ndim(value) and len(value) == 1 and value.shape == values[0].shape for value in values):
            stacked[name.removeprefix(editor.inside(""))] = np.concatenate(values)
    if not stacked:
        raise CannotImport("The graph returns nothing that has a batch axis.")
    return stacked


def _check_batches(session: onnxruntime.InferenceSession, task: Task, samples: Arrays) -> dict[str, float]:
    """Return how much each output depends on the batch. Raises CannotImport if it does, or a batch fails."""
    names = [spec.name for spec in task.outputs]

    def run(count: int, start: int = 0) -> Arrays:
        arrays = {name: array[start : start + count] for name, array in samples.items()}
        return dict(zip(names, session.run(names, arrays), strict=True))

    try:
        alone = [run(1, i) for i in range(SAMPLES)]
        batches = [run(size) for size in _BATCHES]
    except Exception as error:  # As in `_session`.
        raise CannotImport(
            f"The graph fails on a batch: export it with a dynamic batch axis ({_one_line(error)})."
        ) from None
    for size, outputs in zip((*(1 for _ in alone), *_BATCHES), (*alone, *batches), strict=True):
        _check_outputs(task, outputs, size)
    deviation = deviation_in_batches(task.outputs, alone, batches)
    for spec in task.outputs:
        if not deviation[spec.name] <= FLOAT32_TOLERANCE[spec.kind]:
            difference = describe_difference(spec, deviation[spec.name])
            raise CannotImport(
                f"A sample's result depends on the others in its batch, which change {difference}: export the network "
                "in evaluation mode, without quantisation by batch."
            )
    return deviation


def _check_outputs(task: Task, outputs: Arrays, size: int) -> None:
    for spec in task.outputs:
        array = outputs[spec.name]
        if len(array) != size:
            raise CannotImport(f"The graph returns {len(array)} results for a batch of {size}: its batch axis is lost.")
        if problem := spec.mismatch(array):
            raise CannotImport(f"The graph's output does not fit the task: {problem}.")
        if not np.isfinite(array).all():
            raise CannotImport(f"The graph returns infinite numbers or NaN as {spec.name} for an example of the task.")
