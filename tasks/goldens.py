"""Golden requests: request bodies with the answers a model gave when it was published."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks._images import is_image_file, same_image
from tasks.manifest import GOLDENS, BrokenModel, _Part


class Golden(_Part):
    """A request body with the answer to it."""

    request: dict[str, Any]
    answer: dict[str, Any]


def read_goldens(folder: Path) -> tuple[Golden, ...]:
    """The golden requests. Raises BrokenModel."""
    try:
        listed = json.loads((folder / GOLDENS).read_bytes())
        return tuple(Golden.model_validate(golden) for golden in listed)
    except (OSError, ValueError) as error:
        raise BrokenModel(f"{GOLDENS} cannot be read: {error}.") from None


def write_goldens(folder: Path, goldens: Iterable[Golden]) -> None:
    """Writes the golden requests with their answers."""
    listed = [golden.model_dump(mode="json") for golden in goldens]
    (folder / GOLDENS).write_text(json.dumps(listed, ensure_ascii=False) + "\n", encoding="utf-8")


def difference(expected: Any, got: Any, tolerance: float, where: str = "answer") -> str | None:
    """The first place where two JSON values differ; numbers may by `tolerance`. None where they agree.

    A picture's file in base64 (a heat map, a mask) is compared by its pixels, which rounding changes by a level or two.
    """
    if isinstance(expected, str) and isinstance(got, str) and is_image_file(expected):
        return None if expected == got or same_image(expected, got) else f"{where} is another picture"
    if isinstance(expected, bool) or not isinstance(expected, int | float | list | dict):
        return None if expected == got else f"{where} is {got!r:.80}, not {expected!r:.80}"
    if isinstance(expected, int | float):
        close = isinstance(got, int | float) and math.isclose(expected, got, rel_tol=tolerance, abs_tol=tolerance)
        return None if close else f"{where} is {got!r:.80}, not {expected!r:.80}"
    if type(got) is not type(expected) or len(got) != len(expected):
        return f"{where} has another shape"
    pairs = expected.items() if isinstance(expected, dict) else enumerate(expected)
    for key, value in pairs:
        if isinstance(expected, dict) and key not in got:
            return f"{where}.{key} is missing"
        if found := difference(value, got[key], tolerance, f"{where}.{key}"):
            return found
    return None
