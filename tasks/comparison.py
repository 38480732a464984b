"""How far two answers to one request agree, as JSON values: what two versions of a model are compared by.

Knows nothing of tasks. A task whose answers are more than decisions and numbers (a mask, a list by rank) measures them
itself, with what stands below.
"""

import io
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLOSE = 0.1
"""Numbers agree that lie no further apart: absolutely below 1, relative to the larger one above."""


def agreement(ours: Any, theirs: Any) -> float:
    """The share, 0…1, in which two JSON values agree.

    Texts, truth values and nulls are decisions: equal or not. Numbers are close or not (`CLOSE`). Lists agree as far as
    their elements do, place by place, and objects as far as their fields do; but where two objects decide differently
    (another label), the numbers beside the decision speak of different things, and nothing of them agrees.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return _of_objects(ours, theirs)
    if isinstance(ours, list) and isinstance(theirs, list):
        pairs = [agreement(one, other) for one, other in zip(ours, theirs, strict=False)]
        return sum(pairs) / max(len(ours), len(theirs)) if ours or theirs else 1.0
    if _is_number(ours) and _is_number(theirs):
        return float(abs(ours - theirs) <= CLOSE * max(1.0, abs(ours), abs(theirs)))
    return float(type(ours) is type(theirs) and ours == theirs)


def _of_objects(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    names = ours.keys() | theirs.keys()
    decisions = [name for name in ours.keys() & theirs.keys() if _is_decision(ours[name], theirs[name])]
    if any(ours[name] != theirs[name] for name in decisions):
        return 0.0
    found = [agreement(ours[name], theirs[name]) if name in ours and name in theirs else 0.0 for name in names]
    return sum(found) / len(found) if found else 1.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_decision(ours: Any, theirs: Any) -> bool:
    return all(value is None or isinstance(value, str | bool) for value in (ours, theirs))


def overlap(ours: Collection[Any], theirs: Collection[Any]) -> float:
    """The share that two sets have in common, of the larger; 1 where both are empty."""
    one, other = set(ours), set(theirs)
    return len(one & other) / max(len(one), len(other)) if one or other else 1.0


def shared(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """What two divisions of one whole have in common: the sum of the smaller shares of each part, at most 1."""
    return min(1.0, sum(min(share, theirs.get(name, 0.0)) for name, share in ours.items()))


def pixels_of(file: bytes) -> NDArray[np.uint8]:
    """The pixels of a picture's file; of a palette's picture the indices, (height, width)."""
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image if image.mode in ("L", "P") else image.convert("RGB"), np.uint8)


def equal_pixels(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """The share of pixels that are the same; 0 where the pictures have different sizes."""
    return float((ours == theirs).mean()) if ours.shape == theirs.shape else 0.0


def near_pixels(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], *, worst: float) -> float:
    """1 for equal pictures, falling to 0 where the mean absolute difference is `worst` levels of 255 or more."""
    if ours.shape != theirs.shape:
        return 0.0
    apart = float(np.abs(ours.astype(np.int16) - theirs.astype(np.int16)).mean())
    return max(0.0, 1.0 - apart / worst)
