"""Adapt the inputs of a task to those of a graph: layout, colours, range of pixels, number types, names."""

import numpy as np

from service.importing.conventions import Conventions, ImageInput, read_image_input
from service.importing.editor import GraphEditor
from service.importing.errors import CannotImport
from service.importing.foreign_graph import GraphTensor, describe_tensors
from tasks.contract import Task, TensorSpec

_GREY = np.array([[0.299], [0.587], [0.114]], np.float32)
"""Weights of red, green and blue in the luma of ITU-R BT.601."""
_NUMBER_TYPES = {"float32", "float64", "float16", "int64", "int32", "uint8"}


def is_image(spec: TensorSpec) -> bool:
    """Whether a tensor of a task is an image: height, width and three colours, 0…255."""
    return spec.dtype == "uint8" and len(spec.shape) == 3 and spec.shape[2] == 3


def connect_inputs(
    editor: GraphEditor, tensors: tuple[GraphTensor, ...], task: Task, conventions: Conventions
) -> list[str]:
    """Compute the graph's inputs from those of the task; return notes on what was assumed. Raises CannotImport."""
    notes = []
    for spec, tensor in _pair(task.inputs, tensors):
        if tensor.dtype not in _NUMBER_TYPES:
            raise CannotImport(f"The graph's input {tensor} does not contain numbers.")
        if is_image(spec):
            value, note = _image(editor, spec, tensor, conventions)
            notes.append(note)
        else:
            _check_shape(spec, tensor, task)
            value = editor.cast(spec.name, tensor.dtype) if spec.dtype != tensor.dtype else spec.name
        editor.add("Identity", value, output=editor.inside(tensor.name))
    editor.replace_inputs(task.inputs)
    return notes


def _pair(specs: tuple[TensorSpec, ...], tensors: tuple[GraphTensor, ...]) -> list[tuple[TensorSpec, GraphTensor]]:
    """Find the input of the graph for each one of the task: by name, or the only one that is left of both."""
    by_name = {tensor.name: tensor for tensor in tensors}
    pairs = [(spec, by_name.pop(spec.name)) for spec in specs if spec.name in by_name]
    paired = {spec.name for spec, _ in pairs}
    # A table without categories has an input for them all the same, with no columns.
    missing = [spec for spec in specs if spec.name not in paired and 0 not in spec.shape]
    if len(missing) == len(by_name) == 1:
        return [*pairs, (missing[0], next(iter(by_name.values())))]
    if missing or by_name:
        wanted = "; ".join(f"{spec.name}: {spec.dtype} {('batch', *spec.shape)}" for spec in specs)
        raise CannotImport(f"The graph's inputs are {describe_tensors(tensors)}; the task requires {wanted}.")
    return pairs


def _check_shape(spec: TensorSpec, tensor: GraphTensor, task: Task) -> None:
    shape = tensor.shape
    if shape is None:
        return
    if len(shape) != 1 + len(spec.shape):
        raise CannotImport(
            f"The graph's input {tensor} has {len(shape)} axes; the task requires {('batch', *spec.shape)}."
        )
    for wanted, axis in zip(spec.shape, shape[1:], strict=True):
        if not isinstance(axis, int) or axis == wanted:
            continue
        if isinstance(wanted, int):
            raise CannotImport(f"The graph's input {tensor} has an axis of length {axis}; the task requires {wanted}.")
        lengths = task.length_buckets.get(wanted, ())
        if lengths != (axis,):
            raise CannotImport(
                f"The graph's input {tensor} has the fixed length {axis}, but the axis '{wanted}' varies"
                f"{f' ({lengths})' if lengths else ''}: export it with a dynamic axis."
            )


def _image(editor: GraphEditor, spec: TensorSpec, tensor: GraphTensor, conventions: Conventions) -> tuple[str, str]:
    """Return the image as the graph expects it, and a note that describes how that is."""
    image = read_image_input(tensor, conventions.layout)
    _check_size(spec, tensor, image)
    pixels = conventions.pixels or ("0..1" if tensor.dtype.startswith("float") else "0..255")
    if not tensor.dtype.startswith("float") and (pixels != "0..255" or conventions.mean):
        raise CannotImport(f"The graph's input {tensor} takes integers, 0..255, without --pixels, --mean and --std.")
    value = editor.cast(spec.name, "float32")
    value = _scale(editor, value, pixels)
    if image.channels == 1:
        value = editor.add("MatMul", value, editor.constant(_GREY))
    elif conventions.channels == "bgr":
        value = editor.add("Gather", value, editor.constant(np.array([2, 1, 0], np.int64)), axis=3)
    value = _normalise(editor, value, image, conventions)
    if image.is_channels_first:
        value = editor.add("Transpose", value, perm=[0, 3, 1, 2])
    value = editor.cast(value, tensor.dtype)
    return value, _describe(image, pixels, conventions)


def _check_size(spec: TensorSpec, tensor: GraphTensor, image: ImageInput) -> None:
    height, width = spec.shape[:2]
    if image.height not in (None, height) or image.width not in (None, width):
        raise CannotImport(
            f"The graph's input {tensor} is {image.width}×{image.height} pixels, but the task's is {width}×{height}."
        )


def _scale(editor: GraphEditor, value: str, pixels: str) -> str:
    if pixels == "0..255":
        return value
    value = editor.add("Div", value, editor.constant(np.float32(255)))
    if pixels == "-1..1":
        value = editor.add("Mul", value, editor.constant(np.float32(2)))
        value = editor.add("Sub", value, editor.constant(np.float32(1)))
    return value


def _normalise(editor: GraphEditor, value: str, image: ImageInput, conventions: Conventions) -> str:
    if not conventions.mean:
        return value
    if len(conventions.mean) not in (1, image.channels):
        raise CannotImport(
            f"--mean has {len(conventions.mean)} numbers, and the graph's input {image.channels} channels."
        )
    value = editor.add("Sub", value, editor.constant(np.array(conventions.mean, np.float32)))
    return editor.add("Div", value, editor.constant(np.array(conventions.std, np.float32)))


def _describe(image: ImageInput, pixels: str, conventions: Conventions) -> str:
    layout = "channels first" if image.is_channels_first else "channels last"
    colours = "grey" if image.channels == 1 else conventions.channels.upper()
    normalised = (
        f"minus {_numbers(conventions.mean)}, divided by {_numbers(conventions.std)}"
        if conventions.mean
        else "without --mean and --std"
    )
    return f"The graph gets {colours} pixels in the range {pixels}, {normalised}, {layout}."


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
