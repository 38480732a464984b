"""Calibration by temperature or blend weights, and calibration errors."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

BINS = 15


def fit_temperature(
    logits: Tensor, targets: Tensor, *, loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
) -> float:
    """Return the temperature with maximum likelihood (Guo et al. 2017); logits (n, classes), targets (n,).

    With another `loss` (of logits and targets), the targets are what that loss takes. Bounded to 0.05…20, since
    samples that are all correct, or all wrong, would yield 0 or infinity.
    """
    exponent = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([exponent], max_iter=100, line_search_fn="strong_wolfe")
    exact_logits = logits.double()
    bounds = (math.log(0.05), math.log(20.0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(exact_logits / exponent.clamp(*bounds).exp(), targets)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    temperature = float(exponent.detach().clamp(*bounds).exp())
    return temperature if math.isfinite(temperature) else 1.0


def fit_blend_weights(parts: Sequence[Tensor], targets: Tensor) -> tuple[float, ...]:
    """Return the weights of each part's logits (n, classes) in their sum that maximise the likelihood of the targets.

    With one part, its weight is the inverse of a temperature. Weights are between 0.001 and 100, and regularised
    towards 1 with the weight of one sample: a dozen samples that are all correct would yield a weight of infinity.
    """
    exponents = torch.zeros(len(parts), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([exponents], max_iter=200, line_search_fn="strong_wolfe")
    exact_logits = torch.stack([part.double() for part in parts])
    bounds = (math.log(0.001), math.log(100.0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy((exact_logits * exponents.clamp(*bounds).exp()[:, None, None]).sum(0), targets)
        value = value + exponents.pow(2).sum() / (2 * len(targets))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    weights = exponents.detach().clamp(*bounds).exp().tolist()
    return tuple(float(weight) if math.isfinite(weight) else 1.0 for weight in weights)


def reliability_bins(
    probabilities: NDArray[np.floating], targets: NDArray[np.integer], bins: int = BINS
) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, count) of each non-empty bin; bins have equal width."""
    return bin_by_confidence(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets, bins)


def bin_by_confidence(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = BINS
) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, count) of each non-empty bin, from one confidence per sample, (n,)."""
    bin_index = np.minimum((confidence * bins).astype(int), bins - 1)
    members = [bin_index == i for i in range(bins)]
    return [(float(confidence[m].mean()), float(correct[m].mean()), int(m.sum())) for m in members if m.any()]


def expected_calibration_error(
    probabilities: NDArray[np.floating], targets: NDArray[np.integer], bins: int = BINS
) -> float:
    """Return the mean of |confidence − accuracy| over bins of equal width, weighted by their counts."""
    return mean_calibration_gap(reliability_bins(probabilities, targets, bins))


def mean_calibration_gap(filled_bins: Sequence[tuple[float, float, int]]) -> float:
    """Return the mean of |confidence − accuracy| over the bins, weighted by their counts; 0 without samples."""
    total = sum(count for _, _, count in filled_bins)
    return sum(abs(confidence - accuracy) * count for confidence, accuracy, count in filled_bins) / max(1, total)
