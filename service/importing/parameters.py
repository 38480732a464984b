"""The parameters of a task, from a flag for each of its fields, a JSON file, and the shapes of the graph."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from service.importing.conventions import Conventions, read_image_input
from service.importing.errors import CannotImport
from service.importing.foreign_graph import GraphTensor
from tasks.contract import Task, build_task
from tasks.sentiment import FOREIGN_WORD_PIECES

_NAMES = ("labels", "names", "columns")
"""Parameters that are names, or have names."""
_SIZES = ("size", "width", "height", "tile", "scale")
_ATTRIBUTE = re.compile(r"^        (\w+): (.*(?:\n            .*)*)", re.MULTILINE)

_ACTIVATION_MAP = "activation_map"
_READ_FROM_GRAPH = ("width", "height", "size", "tile", "scale")
_NOUNS = {"bool_parsing": "true or false", "int_parsing": "a whole number", "float_parsing": "a number"}
"""What a value must be, by the type of pydantic's error."""


def add_field_options(parser: argparse.ArgumentParser, task_class: type[Task]) -> None:
    """Add a flag for each field of a task, described as in its docstring."""
    group = parser.add_argument_group("parameters of the task")
    documented = {name: " ".join(text.split()) for name, text in _ATTRIBUTE.findall(task_class.__doc__ or "")}
    for item in fields(task_class):
        text = documented.get(item.name, "").rstrip(".")
        group.add_argument(
            _flag(item.name),
            dest=f"field_{item.name}",
            metavar=_metavar(item, task_class),
            help=f"{text} ({_describe_default(item)})".replace("%", "%%"),
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(item: "Field[Any]", task_class: type[Task]) -> str:
    hint = get_type_hints(task_class)[item.name]
    if item.name in task_class.files:
        return "FILE"
    return "VALUE" if hint in (str, int, float, bool) or not _is_structured(hint) else "FILE|LIST"


def _describe_default(item: "Field[Any]") -> str:
    """Say what a parameter is without its flag; see `infer_parameters` for those that the graph decides on."""
    if item.name == "heatmaps":
        return f"default: whether the graph has an output {_ACTIVATION_MAP}"
    if item.name == "short_text_temperatures":
        return "default: none"
    return f"{_default(item)}, unless the graph states it" if item.name in _READ_FROM_GRAPH else _default(item)


def _default(item: "Field[Any]") -> str:
    if item.default is MISSING and item.default_factory is MISSING:
        return "required"
    return "default: none" if item.default in ((), "", None) else f"default: {item.default}"


def _is_structured(hint: Any) -> bool:
    """Whether values of a type are lists or objects, not numbers or words."""
    return hint not in (str, int, float, bool) and "Literal" not in str(hint)


def build_imported_task(
    task_class: type[Task],
    arguments: argparse.Namespace,
    inferred: Mapping[str, Any],
) -> Task:
    """Build the task: flags come before the file of --parameters, and both before what the graph's shapes say.

    Raises CannotImport, and OSError if a file cannot be read.
    """
    given = dict(inferred) | _read_parameters(arguments.parameters)
    files: dict[str, str] = {}
    hints = get_type_hints(task_class)
    for item in fields(task_class):
        text = getattr(arguments, f"field_{item.name}")
        if item.name in task_class.files:
            given.pop(item.name, None)
            if text is not None:
                files[task_class.files[item.name]] = _read_text(Path(text))
        elif text is not None:
            given[item.name] = _read_value(hints[item.name], text, item.name)
    given = _one_threshold_for_all(given)
    if given.get("spread") is not None:  # A number is predicted, which has no labels.
        given.setdefault("labels", ())
    _require_fields(task_class, given, files)
    try:
        task = build_task(task_class, given, files)
    except ValidationError as error:
        raise CannotImport(_describe_invalid(error.errors()[0])) from None
    except ValueError as error:
        raise CannotImport(f"The parameters do not fit the task: {str(error).rstrip('.')}.") from None
    _check_names(task)
    _check_sizes(task)
    return task


def _check_names(task: Task) -> None:
    """Raise CannotImport for names that are blank or occur twice: answers are made of them, and one would be lost."""
    for field in _NAMES:
        names = [getattr(item, "name", item) for item in getattr(task, field, ())]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise CannotImport(f"{_flag(field)}: '{repeated}' is there {names.count(repeated)} times; names differ.")
        if not all(name.strip() for name in names):
            raise CannotImport(f"{_flag(field)}: a name is blank.")


def _check_sizes(task: Task) -> None:
    for field in _SIZES:
        size = getattr(task, field, None)
        if isinstance(size, int) and size < 1:
            raise CannotImport(f"{_flag(field)} {size}: it must be at least 1.")


def _read_parameters(file: str) -> dict[str, Any]:
    if not file:
        return {}
    try:
        values = json.loads(_read_text(Path(file)))
    except ValueError as error:
        raise CannotImport(f"--parameters {file} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise CannotImport(f"--parameters {file} must be a JSON object with the fields of the task.")
    return values


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CannotImport(f"{path} is not UTF-8 text.") from None


def _read_value(hint: Any, text: str, name: str) -> Any:
    """Read the value of a flag: a word or number as it is, a list from a file, as JSON, or separated by commas."""
    if not _is_structured(hint):
        return text
    if text.lstrip().startswith(("[", "{")):
        return _parse_json(text, _flag(name))
    path = Path(text)
    if path.suffix == ".json":
        return _parse_json(_read_text(path), text)
    if path.is_file():
        return [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    if path.suffix == ".txt":
        _read_text(path)  # Raises: there is no such file.
    return [part.strip() for part in text.split(",")]


def _parse_json(text: str, source: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise CannotImport(f"{source} is not JSON: {error}.") from None


def _one_threshold_for_all(given: Mapping[str, Any]) -> dict[str, Any]:
    """Repeat a single threshold for every label."""
    thresholds, labels = given.get("thresholds"), given.get("labels")
    is_single = isinstance(thresholds, Sequence) and len(thresholds) == 1
    if is_single and isinstance(labels, Sequence):
        return {**given, "thresholds": list(thresholds or ()) * len(labels)}
    return dict(given)


def _require_fields(task_class: type[Task], given: Mapping[str, Any], files: Mapping[str, str]) -> None:
    missing = [
        _flag(item.name)
        for item in fields(task_class)
        if item.default is MISSING and item.default_factory is MISSING
        if item.name not in given and task_class.files.get(item.name) not in files
    ]
    if missing:
        can_be_number = any(item.name == "spread" for item in fields(task_class))
        wanted = ["--labels (or --spread, for a number)" if can_be_number and f == "--labels" else f for f in missing]
        raise CannotImport(f"The task also needs {', '.join(wanted)}; --help says what each of them is.")


def _describe_invalid(error: ErrorDetails) -> str:
    location = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ").rstrip(".")
    if error["type"] in _NOUNS:
        message = f"must be {_NOUNS[error['type']]}, not {error['input']!r:.80}"
    if error["type"] == "unexpected_keyword_argument" or error["type"] == "extra_forbidden":
        return f"The task has no parameter '{location}'."
    return f"The parameters do not fit the task: {location + ': ' if location else ''}{message}."


def infer_parameters(
    task_class: type[Task], inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor], conventions: Conventions
) -> dict[str, Any]:
    """Return what is known of a foreign graph's task: from its shapes, the size of the input and the scale.

    Parameters that other models were calibrated with are left out.
    """
    names = {item.name for item in fields(task_class)}
    inferred: dict[str, Any] = {}
    if "heatmaps" in names:
        inferred["heatmaps"] = any(tensor.name == _ACTIVATION_MAP for tensor in outputs)
    if "short_text_temperatures" in names:  # The default was fitted for a shipped model, not for this graph.
        inferred["short_text_temperatures"] = ()
    if "word_pieces" in names:  # With these, no text is called foreign: nobody knows the words of the training texts.
        inferred["word_pieces"] = FOREIGN_WORD_PIECES
    if not task_class.decodes_files or len(inputs) != 1:
        return inferred
    image = read_image_input(inputs[0], conventions.layout)
    if image.height is None or image.width is None:
        return inferred
    if {"width", "height"} <= names:
        inferred |= {"width": image.width, "height": image.height}
    side = next((name for name in ("size", "tile") if name in names), None)
    if side is not None:
        if image.height != image.width:
            raise CannotImport(f"The graph's input {inputs[0]} is not square, as the task requires.")
        inferred[side] = image.width
    if "scale" in names:
        inferred |= _scale(outputs, image.is_channels_first, image.width)
    return inferred


def _scale(outputs: Sequence[GraphTensor], is_channels_first: bool, width: int) -> dict[str, int]:
    for tensor in outputs:
        if tensor.shape is not None and len(tensor.shape) == 4:
            axis = tensor.shape[3] if is_channels_first else tensor.shape[2]
            if isinstance(axis, int) and axis % width == 0:
                return {"scale": axis // width}
    return {}
