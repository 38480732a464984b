"""Agreement between two answers to one request, used to compare two versions of a model.

This module works on JSON values and does not depend on tasks. A task whose answer contains more than decisions and
numbers (a mask, a ranking) measures agreement itself, with the functions at the end of this module.
"""

import io
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NUMBER_TOLERANCE = 0.1
"""Largest difference between two numbers that agree: absolute below 1, relative to the larger one above."""


def agreement(ours: Any, theirs: Any) -> float:
    """Return the fraction, 0…1, to which two JSON values agree.

    Strings, booleans and nulls are decisions: equal or not. Numbers are close or not (`NUMBER_TOLERANCE`). Lists are
    compared element by element, and objects field by field; the result is the mean. Two objects with different
    decisions (another label) do not agree at all, since the numbers beside the decision mean different things.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return _object_agreement(ours, theirs)
    if isinstance(ours, list) and isinstance(theirs, list):
        elements = [agreement(our, their) for our, their in zip(ours, theirs, strict=False)]
        return sum(elements) / max(len(ours), len(theirs)) if ours or theirs else 1.0
    if _is_number(ours) and _is_number(theirs):
        return float(abs(ours - theirs) <= NUMBER_TOLERANCE * max(1.0, abs(ours), abs(theirs)))
    return float(type(ours) is type(theirs) and ours == theirs)


def _object_agreement(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    names = ours.keys() | theirs.keys()
    decisions = [name for name in ours.keys() & theirs.keys() if _is_decision(ours[name], theirs[name])]
    if any(ours[name] != theirs[name] for name in decisions):
        return 0.0
    fields = [agreement(ours[name], theirs[name]) if name in ours and name in theirs else 0.0 for name in names]
    return sum(fields) / len(fields) if fields else 1.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_decision(ours: Any, theirs: Any) -> bool:
    return all(value is None or isinstance(value, str | bool) for value in (ours, theirs))


def overlap(ours: Collection[Any], theirs: Collection[Any]) -> float:
    """Return the size of the intersection of two sets, as a fraction of the larger set; 1 if both are empty."""
    our_set, their_set = set(ours), set(theirs)
    return len(our_set & their_set) / max(len(our_set), len(their_set)) if our_set or their_set else 1.0


def common_fraction(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """Return what two distributions have in common: the sum of the smaller fraction of each part, at most 1."""
    return min(1.0, sum(min(fraction, theirs.get(name, 0.0)) for name, fraction in ours.items()))


def read_pixels(file: bytes) -> NDArray[np.uint8]:
    """Decode an image file: (height, width) for greyscale and palette images (their indices), else RGB."""
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image if image.mode in ("L", "P") else image.convert("RGB"), np.uint8)


def equal_pixel_fraction(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """Return the fraction of pixels that are equal; 0 if the images differ in size."""
    return float((ours == theirs).mean()) if ours.shape == theirs.shape else 0.0


def pixel_similarity(ours: NDArray[np.uint8], theirs: NDArray[np.uint8], *, max_difference: float) -> float:
    """Return 1 for equal images, falling to 0 as the mean absolute difference rises to `max_difference` levels of 255.

    Images of different sizes have similarity 0.
    """
    if ours.shape != theirs.shape:
        return 0.0
    difference = float(np.abs(ours.astype(np.int16) - theirs.astype(np.int16)).mean())
    return max(0.0, 1.0 - difference / max_difference)
