"""Adapt the outputs of a graph to those of a task: soft-max, layout, range of pixels, number types, names.

A graph whose outputs have the names of the task's is taken to return what they mean. Otherwise a function for each
task finds the outputs by their shapes, as they were for some samples, and adds what is missing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from service.importing.conventions import Conventions
from service.importing.editor import GraphEditor
from service.importing.errors import CannotImport
from tasks.contract import Array, Task, TensorSpec
from tasks.keypoints import Keypoints
from tasks.segmentation import Segmentation
from tasks.super_resolution import SuperResolution
from tasks.tabular import Tabular

_SUM_TOLERANCE = 1e-3
"""How far the sum of probabilities may be from 1: more than the rounding of 16-bit floats."""


@dataclass(frozen=True)
class RawOutputs:
    """The outputs of the graph as it was exported.

    Attributes:
        editor: adds nodes that read them.
        arrays: their values for a few different samples, by name, batch axis first.
        conventions: what the user said about them.
        notes: what was assumed; the functions of this module add to it.
    """

    editor: GraphEditor
    arrays: Mapping[str, Array]
    conventions: Conventions
    notes: list[str]

    def shapes(self) -> str:
        """Return the names and shapes of the outputs, without the batch axis, for a message."""
        return ", ".join(f"{name} {array.shape[1:]}" for name, array in self.arrays.items())

    def find(self, *shapes: tuple[int, ...]) -> str | None:
        """Return the first output of numbers with one of these shapes (without the batch axis), or None."""
        for shape in shapes:
            for name, array in self.arrays.items():
                if array.shape[1:] == shape and np.issubdtype(array.dtype, np.floating):
                    return name
        return None

    def as_float(self, name: str) -> str:
        """Return the tensor of an output as float32."""
        return self.editor.cast(self.editor.inside(name), "float32")


def connect_outputs(task_name: str, task: Task, raw: RawOutputs) -> None:
    """Compute the task's outputs from the graph's, and declare them. Raises CannotImport."""
    if all(spec.name in raw.arrays for spec in task.outputs):
        computed: Mapping[str, str] = {
            spec.name: raw.editor.cast(raw.editor.inside(spec.name), spec.dtype) for spec in task.outputs
        }
        _check_shapes(task.outputs, raw)
    elif task_name in _ADAPTERS:
        computed = _ADAPTERS[task_name](task, raw)
    else:
        names = ", ".join(spec.name for spec in task.outputs)
        raise CannotImport(f"The graph returns {raw.shapes()}; the task requires the outputs {names}.")
    for spec in task.outputs:
        raw.editor.add("Identity", computed[spec.name], output=spec.name)
    raw.editor.replace_outputs(task.outputs)


def _check_shapes(specs: tuple[TensorSpec, ...], raw: RawOutputs) -> None:
    for spec in specs:
        if problem := spec.mismatch(raw.arrays[spec.name].astype(spec.dtype)):
            raise CannotImport(f"The graph's output does not fit the task: {problem}.")


def _classification(task: Task, raw: RawOutputs) -> Mapping[str, str]:
    computed = {"probabilities": _probabilities(raw, task, is_multi_label=bool(getattr(task, "thresholds", ())))}
    if any(spec.name == "activation_map" for spec in task.outputs):
        if "activation_map" not in raw.arrays:
            raise CannotImport(
                f"The graph returns {raw.shapes()} and no activation_map: import it with --heatmaps no, or without it."
            )
        computed["activation_map"] = raw.as_float("activation_map")
    return computed


def _sentiment(task: Task, raw: RawOutputs) -> Mapping[str, str]:
    probabilities = _probabilities(raw, task, is_multi_label=False)
    if "evidence" in raw.arrays:
        return {"probabilities": probabilities, "evidence": raw.as_float("evidence")}
    editor, classes = raw.editor, len(_labels(task))
    raw.notes.append("The graph returns no evidence for single tokens: `words` is always empty.")
    shape = editor.add("Shape", task.inputs[0].name)
    shape = editor.add("Concat", shape, editor.constant(np.array([classes], np.int64)), axis=0)
    zeros = editor.add("Expand", editor.constant(np.zeros(1, np.float32)), shape)
    return {"probabilities": probabilities, "evidence": zeros}


def _tabular(task: Task, raw: RawOutputs) -> Mapping[str, str]:
    assert isinstance(task, Tabular)  # noqa: S101 -- by its name, see `_ADAPTERS`.
    if task.labels:
        return {"probabilities": _probabilities(raw, task, is_multi_label=False)}
    editor = raw.editor
    interval = raw.find((2,))
    number = raw.find((), (1,))
    if number is None:
        raise CannotImport(f"The graph returns {raw.shapes()}; the task requires one number for each row.")
    value = editor.reshape(raw.as_float(number), -1, 1)
    if interval is not None:
        ends = raw.as_float(interval)
    elif raw.conventions.interval:
        ends = editor.add("Add", value, editor.constant(np.array([raw.conventions.interval], np.float32)))
    else:
        raise CannotImport(
            f"The graph returns {raw.shapes()} and no prediction interval (two numbers for each row): state how far "
            "its ends are from the number with --interval LOW,HIGH."
        )
    return {"value": editor.reshape(value, -1), "interval": ends}


def _segmentation(task: Task, raw: RawOutputs) -> Mapping[str, str]:
    assert isinstance(task, Segmentation)  # noqa: S101 -- by its name, see `_ADAPTERS`.
    classes, editor = len(task.labels), raw.editor
    widths = (classes, 1) if classes == 2 else (classes,)
    for name, array, is_first in _maps(raw, widths):
        scores = raw.as_float(name)
        if not is_first:
            scores = editor.add("Transpose", scores, perm=[0, 3, 1, 2])
        height, width = array.shape[2:] if is_first else array.shape[1:3]
        channels_last = np.moveaxis(array, 1, -1) if is_first else array
        if (height, width) != (task.height, task.width):
            raw.notes.append(f"The graph's scores are for {width}×{height} pixels; they are enlarged.")
            scores = _resize(editor, scores, task.height, task.width)
        scores = editor.add("Transpose", scores, perm=[0, 2, 3, 1])
        probabilities = _to_probabilities(raw, name, scores, channels_last, is_multi_label=False)
        mask = editor.add("ArgMax", probabilities, axis=3, keepdims=0)
        levels = editor.add("Mul", editor.max_over_last(probabilities), editor.constant(np.float32(255)))
        return {"mask": editor.cast(mask, "uint8"), "confidence": editor.cast(editor.add("Round", levels), "uint8")}
    raise CannotImport(
        f"The graph returns {raw.shapes()}, and there are {classes} labels: the task requires a score for each label "
        "and pixel, or the outputs mask and confidence."
    )


def _maps(raw: RawOutputs, channels: tuple[int, ...]) -> Iterator[tuple[str, Array, bool]]:
    """Yield outputs with one map per channel: the name, the values, and whether the channels come first."""
    for name, array in raw.arrays.items():
        if array.ndim == 4 and np.issubdtype(array.dtype, np.floating):
            if array.shape[1] in channels:
                yield name, array, True
            elif array.shape[3] in channels:
                yield name, array, False


def _resize(editor: GraphEditor, scores: str, height: int, width: int) -> str:
    """Scale maps (batch, channels, …) bilinearly, with the centres of pixels as networks are trained."""
    shape = editor.add("Shape", scores)
    sizes = editor.add("Gather", shape, editor.constant(np.array([0, 1], np.int64)), axis=0)
    sizes = editor.add("Concat", sizes, editor.constant(np.array([height, width], np.int64)), axis=0)
    nothing = editor.constant(np.zeros(0, np.float32))
    return editor.add("Resize", scores, nothing, nothing, sizes, mode="linear")


def _super_resolution(task: Task, raw: RawOutputs) -> Mapping[str, str]:
    assert isinstance(task, SuperResolution)  # noqa: S101 -- by its name, see `_ADAPTERS`.
    side, editor = task.scale * task.tile, raw.editor
    name = next((n for n, a in raw.arrays.items() if a.shape[1:] in ((3, side, side), (side, side, 3))), None)
    if name is None:
        raise CannotImport(
            f"The graph returns {raw.shapes()}; with --tile {task.tile} and --scale {task.scale}, the task requires an "
            f"image of {side}×{side} pixels in 3 colours."
        )
    array = raw.arrays[name]
    value = raw.as_float(name)
    if array.shape[1] == 3:
        value = editor.add("Transpose", value, perm=[0, 2, 3, 1])
    if raw.conventions.channels == "bgr":
        value = editor.add("Gather", value, editor.constant(np.array([2, 1, 0], np.int64)), axis=3)
    pixels = raw.conventions.output_pixels or raw.conventions.pixels
    pixels = pixels or ("0..1" if np.issubdtype(array.dtype, np.floating) else "0..255")
    raw.notes.append(f"The graph's output is taken as pixels in the range {pixels}.")
    if pixels == "-1..1":
        value = editor.add("Add", value, editor.constant(np.float32(1)))
        value = editor.add("Div", value, editor.constant(np.float32(2)))
    if pixels != "0..255":
        value = editor.add("Mul", value, editor.constant(np.float32(255)))
    return {"restored": editor.cast(editor.add("Round", editor.clip(value, 0, 255)), "uint8")}


def _keypoints(task: Task, raw: RawOutputs) -> Mapping[str, str]:
    assert isinstance(task, Keypoints)  # noqa: S101 -- by its name, see `_ADAPTERS`.
    count, editor = len(task.names), raw.editor
    points = raw.find((count, 2), (2 * count,))
    confidence = raw.find((count,), (count, 1))
    if points is None or confidence is None:
        raise CannotImport(
            f"The graph returns {raw.shapes()}; with {count} names, the task requires the points ({count}, 2) and a "
            f"confidence for each ({count},)."
        )
    value = editor.reshape(raw.as_float(points), -1, count, 2)
    if raw.conventions.points == "fractions":
        value = editor.add("Mul", value, editor.constant(np.float32(task.size)))
    raw.notes.append(f"The points are taken as {raw.conventions.points} of the graph's input, x before y.")
    return {"points": value, "confidence": editor.reshape(raw.as_float(confidence), -1, count)}


def _labels(task: Task) -> tuple[str, ...]:
    labels: tuple[str, ...] = getattr(task, "labels", ())
    return labels


def _probabilities(raw: RawOutputs, task: Task, *, is_multi_label: bool) -> str:
    """Find the output with one value per label, and turn it into probabilities."""
    classes = len(_labels(task))
    shapes = [(classes,), (classes, 1, 1), (1, 1, classes)]
    if classes == 2 and not is_multi_label:
        shapes += [(1,), ()]
    name = "probabilities" if "probabilities" in raw.arrays else raw.find(*shapes)
    if name is None:
        raise CannotImport(
            f"There are {classes} labels, but the graph returns {raw.shapes()}: it must return one number for each "
            "label."
        )
    array = raw.arrays[name]
    if array[0].size not in (classes, 1 if (1,) in shapes else classes):
        raise CannotImport(f"There are {classes} labels, but the graph returns {array[0].size} {name}.")
    scores = raw.editor.reshape(raw.as_float(name), -1, array[0].size)
    flat = array.reshape(len(array), -1).astype(np.float32)
    return _to_probabilities(raw, name, scores, flat, is_multi_label=is_multi_label)


def _to_probabilities(raw: RawOutputs, name: str, scores: str, values: Array, *, is_multi_label: bool) -> str:
    """Turn scores (labels last) into probabilities, unless they are; `values` are those of some samples."""
    editor, is_single = raw.editor, values.shape[-1] == 1
    kind = _kind_of_outputs(raw, name, values, is_multi_label=is_multi_label)
    if kind == "logits":
        independent = is_multi_label or is_single
        scores = editor.add("Sigmoid", scores) if independent else editor.add("Softmax", scores, axis=-1)
    raw.notes.append(f"The graph's output {name} is taken as {kind}.")
    if not is_single or is_multi_label:
        return scores
    raw.notes.append("Its single number is taken as the probability of the second label.")
    rest = editor.add("Sub", editor.constant(np.float32(1)), scores)
    return editor.add("Concat", rest, scores, axis=-1)


def _kind_of_outputs(raw: RawOutputs, name: str, values: Array, *, is_multi_label: bool) -> str:
    """Return `logits` or `probabilities`: as stated, by the operator that returns them, or by the values."""
    in_range = bool((values >= -_SUM_TOLERANCE).all() and (values <= 1 + _SUM_TOLERANCE).all())
    is_independent = is_multi_label or values.shape[-1] == 1
    sums_to_one = is_independent or bool((np.abs(values.sum(axis=-1) - 1) <= _SUM_TOLERANCE).all())
    operator = raw.editor.last_operator(raw.editor.inside(name))
    stated = raw.conventions.outputs
    if stated == "logits":
        return stated
    if stated == "probabilities" or operator in ("Softmax", "Sigmoid", "HardSigmoid"):
        if not (in_range and sums_to_one):
            hint = "" if is_multi_label else "; if several labels may apply to an image, state their --thresholds"
            raise CannotImport(f"The graph's output {name} does not contain probabilities of the labels{hint}.")
        return "probabilities"
    if is_independent and in_range:
        raise CannotImport(
            f"Whether the graph's output {name} is logits or probabilities is not clear: state --outputs."
        )
    return "probabilities" if in_range and sums_to_one else "logits"


_ADAPTERS: Mapping[str, Callable[[Task, RawOutputs], Mapping[str, str]]] = {
    "classification": _classification,
    "keypoints": _keypoints,
    "segmentation": _segmentation,
    "sentiment": _sentiment,
    "super_resolution": _super_resolution,
    "tabular": _tabular,
}
