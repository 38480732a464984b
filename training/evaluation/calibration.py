"""Calibration by temperature or blend weights, and calibration errors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.core.sentences import count_of

BINS = 15
MIN_SAMPLES = 200
"""With fewer samples, a fitted temperature says more about the samples than about the network."""
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0

Loss = Callable[[Tensor, Tensor], Tensor]
"""A mean loss of logits and targets."""


@dataclass(frozen=True)
class Calibration:
    """A temperature that calibrates probabilities, or the reason why they are not calibrated.

    Attributes:
        temperature: what the logits are divided by; 1 if they are not calibrated.
        reason: why they are not, as in "59 validation images; at least 200 are needed"; empty if they are.
    """

    temperature: float
    reason: str = ""

    @property
    def caveat(self) -> str:
        """What users should know: that the probabilities are not calibrated, and why; empty if they are."""
        return uncalibrated_caveat(self.reason)


def uncalibrated_caveat(reason: str) -> str:
    """Say that probabilities are not calibrated, for a reason; empty without one."""
    return f"The probabilities are not calibrated: {reason}." if reason else ""


def describe_shortage(count: int, samples: str, minimum: int = MIN_SAMPLES) -> str:
    """Return why `count` samples (named in the plural) are too few to calibrate with; empty if they are enough."""
    if count >= minimum:
        return ""
    return f"{count_of(count, samples.removesuffix('s'))}; at least {minimum:,} are needed"


def calibrate(
    logits: Tensor,
    targets: Tensor,
    samples: str,
    *,
    count: int | None = None,
    minimum: int = MIN_SAMPLES,
    loss: Loss = cross_entropy,
) -> Calibration:
    """Fit a temperature, unless there are too few samples, or the best temperature is one of the bounds.

    Args:
        logits: (n, classes).
        targets: what `loss` takes; class indices (n,) by default.
        samples: what is counted, in the plural: `validation images`.
        count: the number of independent samples if it is not n, such as the images that pixels come from.
        minimum: the smallest `count` that is enough.
        loss: the mean loss whose minimum is sought.
    """
    if shortage := describe_shortage(len(logits) if count is None else count, samples, minimum):
        return Calibration(1.0, shortage)
    temperature = fit_temperature(logits, targets, loss=loss)
    exact = logits.double()
    fitted = float(loss(exact / temperature, targets))
    for bound, circumstance in (
        (_MIN_TEMPERATURE, "almost every answer is right, so how sure they should be is unknown"),
        (_MAX_TEMPERATURE, "the answers say next to nothing about the truth"),
    ):
        # The gradient vanishes before the bound is reached, so the losses are compared rather than the temperatures.
        if not float(loss(exact / bound, targets)) > fitted:
            return Calibration(1.0, f"on the {samples}, {circumstance} (the best temperature is beyond {bound:g})")
    return Calibration(temperature)


def cross_fit(
    logits: Tensor, targets: Tensor, *, groups: NDArray[np.integer] | None = None, loss: Loss = cross_entropy
) -> Tensor:
    """Return the logits, those of each half divided by the temperature fitted on the other half.

    Calibration errors are measured on them, since a temperature looks better on the samples it was fitted on. Groups
    of samples, numbered (n,), are not split. With a single sample or group, the logits are returned as they are.
    """
    half = torch.from_numpy(split_halves(len(logits), groups))
    scaled = logits.clone()
    for part in (half, ~half):
        if bool(part.any()) and not bool(part.all()):
            scaled[part] = logits[part] / fit_temperature(logits[~part], targets[~part], loss=loss)
    return scaled


def split_halves(count: int, groups: NDArray[np.integer] | None = None) -> NDArray[np.bool_]:
    """Return which of `count` samples are in the first of two random halves, bool (count,); groups are not split.

    The halves are random because neighbouring samples are often related, such as tiles of one image.
    """
    index = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    number = int(index.max()) + 1 if count else 0
    is_first: NDArray[np.bool_] = (np.random.default_rng(0).permutation(number) % 2 == 0)[index]
    return is_first


def fit_temperature(logits: Tensor, targets: Tensor, *, loss: Loss = cross_entropy) -> float:
    """Return the temperature with maximum likelihood (Guo et al. 2017); logits (n, classes), targets (n,).

    With another `loss` (of logits and targets), the targets are what that loss takes. Bounded to 0.05…20, since
    samples that are all correct, or all wrong, would yield 0 or infinity.
    """
    exponent = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([exponent], max_iter=100, line_search_fn="strong_wolfe")
    exact_logits = logits.double()
    bounds = (math.log(_MIN_TEMPERATURE), math.log(_MAX_TEMPERATURE))

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
