"""Calibration by one temperature, and how far probabilities are from frequencies."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

BINS = 15


def temperature(logits: Tensor, targets: Tensor, *, loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy) -> float:
    """The temperature that makes these samples likeliest (Guo et al. 2017); logits (n, classes), targets (n,).

    With another `loss` (of logits and targets) the targets are what that loss takes. Bounded to 0.05…20: samples that
    are all right, or all wrong, would ask for 0 or infinity.
    """
    exponent = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([exponent], max_iter=100, line_search_fn="strong_wolfe")
    exact = logits.double()

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(exact / exponent.clamp(math.log(0.05), math.log(20.0)).exp(), targets)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = float(exponent.detach().clamp(math.log(0.05), math.log(20.0)).exp())
    return found if math.isfinite(found) else 1.0


def shares(parts: Sequence[Tensor], targets: Tensor) -> tuple[float, ...]:
    """How much the logits (n, classes) of each part count for in their sum, so that these samples are likeliest.

    With one part, that is the inverse of its temperature. Each is between 0.001 and 100, and held to 1 by as much as
    one sample weighs: a dozen samples that are all right would ask for certainty.
    """
    exponents = torch.zeros(len(parts), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([exponents], max_iter=200, line_search_fn="strong_wolfe")
    exact = torch.stack([part.double() for part in parts])
    bounds = (math.log(0.001), math.log(100.0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy((exact * exponents.clamp(*bounds).exp()[:, None, None]).sum(0), targets)
        value = value + exponents.pow(2).sum() / (2 * len(targets))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = exponents.detach().clamp(*bounds).exp()
    return tuple(float(share) if math.isfinite(share) else 1.0 for share in found.tolist())


def reliability(
    probabilities: NDArray[np.floating], targets: NDArray[np.integer], bins: int = BINS
) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, count) of each bin of equal width that holds samples."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    members = [places == i for i in range(bins)]
    return [(float(confidence[m].mean()), float(right[m].mean()), int(m.sum())) for m in members if m.any()]


def expected_calibration_error(
    probabilities: NDArray[np.floating], targets: NDArray[np.integer], bins: int = BINS
) -> float:
    """The mean distance of confidence and accuracy over bins of equal width, weighted by their counts."""
    found = reliability(probabilities, targets, bins)
    return sum(abs(confidence - accuracy) * count for confidence, accuracy, count in found) / len(targets)


def at_temperature_one(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.floating]:
    """What the probabilities (n, classes) were before they were calibrated by `temperature`."""
    logits = np.log(np.maximum(probabilities, 1e-30)) * temperature
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: NDArray[np.floating] = exponents / exponents.sum(axis=1, keepdims=True)
    return found
