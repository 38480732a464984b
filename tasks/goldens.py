"""Golden requests: request bodies with the answers a model gave when it was published."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks._images import is_image_file, same_image
from tasks.manifest import GOLDENS, BrokenModel, StrictModel


class Golden(StrictModel):
    """A request body with its recorded answer."""

    request: dict[str, Any]
    answer: dict[str, Any]


def read_goldens(folder: Path, name: str = GOLDENS) -> tuple[Golden, ...]:
    """Read the golden requests of a model folder, by default those of model.onnx. Raises BrokenModel."""
    try:
        return parse_goldens((folder / name).read_bytes(), name)
    except OSError as error:
        raise BrokenModel(f"{name} cannot be read: {error.strerror}.") from None


def parse_goldens(content: bytes, name: str = GOLDENS) -> tuple[Golden, ...]:
    """Return the golden requests that a file contains, whose name is for messages. Raises BrokenModel."""
    try:
        return tuple(Golden.model_validate(golden) for golden in json.loads(content))
    except (ValueError, TypeError) as error:
        raise BrokenModel(f"{name} cannot be read: {error}.") from None


def write_goldens(folder: Path, goldens: Iterable[Golden], name: str = GOLDENS) -> None:
    """Write the golden requests with their answers."""
    values = [golden.model_dump(mode="json") for golden in goldens]
    (folder / name).write_text(json.dumps(values, ensure_ascii=False) + "\n", encoding="utf-8")


def first_difference(expected: Any, actual: Any, tolerance: float, path: str = "answer") -> str | None:
    """Describe the first difference between two JSON values, or return None if they agree.

    Numbers may differ by `tolerance`. Base64 image files (a heat map, a mask) are compared by their pixels, because
    rounding changes those by a level or two.
    """
    if isinstance(expected, str) and isinstance(actual, str) and is_image_file(expected):
        return None if expected == actual or same_image(expected, actual) else f"{path} is a different image"
    if isinstance(expected, bool) or not isinstance(expected, int | float | list | dict):
        return None if expected == actual else f"{path} is {actual!r:.80}, not {expected!r:.80}"
    if isinstance(expected, int | float):
        close = isinstance(actual, int | float) and math.isclose(expected, actual, rel_tol=tolerance, abs_tol=tolerance)
        return None if close else f"{path} is {actual!r:.80}, not {expected!r:.80}"
    if type(actual) is not type(expected) or len(actual) != len(expected):
        return f"{path} has a different shape"
    pairs = expected.items() if isinstance(expected, dict) else enumerate(expected)
    for key, value in pairs:
        if isinstance(expected, dict) and key not in actual:
            return f"{path}.{key} is missing"
        if difference := first_difference(value, actual[key], tolerance, f"{path}.{key}"):
            return difference
    return None
