"""A column of numbers as a target: whether its logarithm is what is learnt, within which bounds, and how far off."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.core.errors import CannotTrain
from training.learners.tabular.network import Scale

Numbers = NDArray[np.floating]

MIN_ROWS = 50
"""Rows with a target, below which no number is learnt."""
_SKEWED = 1.0
MEASURES = ("rmsle", "rmspe", "rmse", "mae")
WORDS = {
    "rmsle": "root mean square of the difference of log(1 + number)",
    "rmspe": "root mean square of the error as a share of the truth",
    "rmse": "root mean square error, in the target's unit",
    "mae": "mean absolute error, in the target's unit",
    "r2": "share of the variance that is explained",
}


def scale_of(name: str, numbers: Numbers, *, log: str, bounds: Sequence[str]) -> Scale:
    """The scale of a target with these values (of the training rows).

    `log` is yes, no or auto: where no number is negative and their logarithm is less skewed than they are. Counts, and
    numbers below 1, are counted from 1 up. `bounds` are the least and the largest number that may be answered; empty:
    what was seen, and a fifth of its range more on either side (but no negative number where none is, and with the
    logarithm 0 or a sixth less than the least).
    Raises CannotTrain.
    """
    least, largest = float(numbers.min()), float(numbers.max())
    if len(numbers) < MIN_ROWS:
        raise CannotTrain(f"There are {len(numbers)} rows with a '{name}' to train on; at least {MIN_ROWS} are needed.")
    if least == largest:
        raise CannotTrain(f"The target '{name}' is {least:g} in every row to train on: there is nothing to learn.")
    if log == "yes" and least < 0:
        raise CannotTrain(f"--log-target yes: '{name}' holds {least:g}, and negative numbers have no logarithm.")
    shift = 0.0 if least > 0 and (least >= 1 or log == "yes") and not _whole(numbers) else 1.0
    taken = log == "yes" or (log == "auto" and least >= 0 and _less_skewed(numbers, shift))
    low, high = _bounds(name, least, largest, bounds)
    if taken and not bounds:
        low = 0.0 if shift else least / 1.2
    elif taken and low + shift <= 0:
        low = least / 1.2
    return Scale(log=taken, shift=shift if taken else 0.0, low=low, high=high)


def _whole(numbers: Numbers) -> bool:
    return bool((numbers == np.round(numbers)).all())


def _less_skewed(numbers: Numbers, shift: float) -> bool:
    skew = _skew(numbers)
    return skew > _SKEWED and abs(_skew(np.log(numbers + shift))) < skew


def _skew(numbers: Numbers) -> float:
    centred = numbers - numbers.mean()
    return float((centred**3).mean() / max(float((centred**2).mean()), 1e-30) ** 1.5)


def _bounds(name: str, least: float, largest: float, given: Sequence[str]) -> tuple[float, float]:
    margin = 0.2 * (largest - least)
    if not given:
        return max(least - margin, 0.0) if least >= 0 else least - margin, largest + margin
    try:
        low, high = (float(each) for each in given)
    except ValueError:
        raise CannotTrain(f"--bounds {','.join(given)}: two numbers are wanted, 0,1000 say.") from None
    if not low <= least < largest <= high:
        raise CannotTrain(f"--bounds {low:g},{high:g} leave out what '{name}' holds: {least:g} to {largest:g}.")
    return low, high


def measures_for(numbers: Numbers, *, log: bool, options: str) -> tuple[str, ...]:
    """The names of the errors that can be measured for a target with these values, the one that decides first.

    Raises CannotTrain where the chosen one cannot.
    """
    possible = ["rmse", "mae"]
    if (numbers > 0).all():
        possible.insert(0, "rmspe")
    if (numbers >= 0).all():
        possible.insert(0, "rmsle")
    if options not in ("auto", *possible):
        needed = "above zero" if options == "rmspe" else "zero or above"
        raise CannotTrain(f"--measure {options} needs a target whose numbers are all {needed}.")
    first = options if options != "auto" else "rmsle" if log and "rmsle" in possible else "rmse"
    return (first, *(name for name in possible if name != first))


def error(measure: str, found: Numbers, truth: Numbers) -> float:
    """One figure for how far what was found lies from the truth, both (n,) in the target's own unit."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    if measure == "mae":
        return float(np.abs(found - truth).mean())
    if measure == "rmsle":
        gaps = np.log1p(np.maximum(found, 0)) - np.log1p(truth)
    elif measure == "rmspe":
        gaps = (found - truth) / truth
    else:
        gaps = found - truth
    return float(np.sqrt((gaps**2).mean()))


def explained(found: Numbers, truth: Numbers) -> float:
    """R²: 1 less the squared error over that of the mean of the truth."""
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((found - truth) ** 2).sum()) / max(spread, 1e-30)


def stretch_for(number: Numbers, distances: Numbers, truth: Numbers, coverage: float) -> float:
    """How far distances (n, 2) must be stretched for a share `coverage` of the truth to lie within them.

    Split conformal prediction with scores relative to the network's own distances (Romano, Patterson and Candès 2019,
    "Conformalized Quantile Regression"; the scaled kind): the ⌈(n + 1)·coverage⌉-th smallest of how many distances each
    truth is away. All three as they are learnt.
    """
    side = np.where(truth < number, distances[:, 0], distances[:, 1])
    scores = np.sort(np.abs(truth - number) / np.maximum(side, 1e-12))
    rank = min(len(scores), int(np.ceil((len(scores) + 1) * coverage)))
    return float(scores[rank - 1])
