"""Blend the logits of the network with those of n-grams, by weights fitted on the validation texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.evaluation.calibration import describe_shortage, fit_blend_weights

_NEGLIGIBLE, _HUGE = 0.0011, 99.0
"""Weights beyond these are at the bounds of `fit_blend_weights`."""


@dataclass(frozen=True)
class Blend:
    """The weights of each part's logits in their sum, and why they were not fitted; empty if they were.

    Weights that were not fitted are equal, with the sum 1: the parts' mean.
    """

    weights: tuple[float, ...]
    reason: str = ""


def fit_blend(parts: Sequence[Tensor], targets: Tensor) -> Blend:
    """Fit the weights of parts (n, classes), which calibrates their sum, unless the texts are too few for that."""
    equal = (1.0 / len(parts),) * len(parts)
    if shortage := describe_shortage(len(targets), "validation texts"):
        return Blend(equal, shortage)
    weights = fit_blend_weights(parts, targets)
    if max(weights) < _NEGLIGIBLE:
        return Blend(equal, "on the validation texts, the answers say next to nothing about the truth")
    if max(weights) > _HUGE:
        return Blend(
            equal, "on the validation texts, almost every answer is right, so how sure they should be is unknown"
        )
    return Blend(weights)


def blend_logits(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted sum of parts (n, classes)."""
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)


def cross_fit_blend(parts: Sequence[Tensor], targets: Tensor, half: NDArray[np.bool_]) -> Tensor | None:
    """Return the sums (n, classes), each half's with the weights fitted on the other; None if a half is empty."""
    first = torch.from_numpy(half)
    if bool(first.all()) or not bool(first.any()):
        return None
    blended = torch.zeros_like(parts[0])
    for fitted in (first, ~first):
        weights = fit_blend_weights([part[fitted] for part in parts], targets[fitted])
        blended[~fitted] = blend_logits([part[~fitted] for part in parts], weights)
    return blended
