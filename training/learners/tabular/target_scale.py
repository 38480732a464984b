"""The scale of a regression target: log transform or none, and the bounds of predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.core.errors import CannotTrain

FloatArray = NDArray[np.floating]

MIN_ROWS = 50
"""The fewest training rows with a target from which a number is learnt."""
_SKEWED = 1.0


@dataclass(frozen=True)
class TargetScale:
    """Transforms a target to what the network learns, and back.

    Attributes:
        log: whether the network learns the logarithm of the target.
        shift: added before the logarithm is taken: 1 for counts, else 0.
        low: the smallest prediction, in the target's unit.
        high: the largest prediction, in the target's unit.
    """

    log: bool
    shift: float
    low: float
    high: float

    def transform(self, values: Tensor) -> Tensor:
        """Transform float64 values in the target's unit to what the network learns."""
        return (values + self.shift).log() if self.log else values

    def inverse_transform(self, transformed: FloatArray) -> FloatArray:
        """Transform what the network predicts to the target's unit, in float64."""
        exact = transformed.astype(np.float64)
        return np.exp(exact) - self.shift if self.log else exact

    def bounded(self, transformed: FloatArray) -> FloatArray:
        """As `inverse_transform`, clipped to `low` and `high`."""
        return self.inverse_transform(transformed).clip(self.low, self.high)

    @property
    def bounds(self) -> tuple[float, float]:
        """`low` and `high`, transformed."""
        low, high = self.transform(torch.tensor([self.low, self.high], dtype=torch.float64)).tolist()
        return low, high


def fit_target_scale(name: str, values: FloatArray, *, log: str, bounds: Sequence[str]) -> TargetScale:
    """Choose the scale of a target from its values in the training rows.

    Args:
        name: the target's column, for error messages.
        values: float64, (n,).
        log: "yes", "no" or "auto". Auto takes the logarithm if no value is negative and the logarithm is less skewed.
            1 is added first to whole numbers, and if some values are below 1 (with "yes", if some are 0).
        bounds: the smallest and the largest prediction. If empty, they lie a fifth of the range beyond the values,
            but not below 0 if no value is. With the logarithm, the lower one is 0, or a sixth below the smallest value
            where 0 has no logarithm.

    Raises CannotTrain.
    """
    smallest, largest = float(values.min()), float(values.max())
    if len(values) < MIN_ROWS:
        raise CannotTrain(f"Only {len(values)} training rows have a '{name}'; at least {MIN_ROWS} are needed.")
    if smallest == largest:
        raise CannotTrain(f"The target '{name}' is {smallest:g} in every training row, so there is nothing to predict.")
    if log == "yes" and smallest < 0:
        raise CannotTrain(f"--log-target yes: '{name}' contains {smallest:g}, and negative numbers have no logarithm.")
    shift = 0.0 if smallest > 0 and (smallest >= 1 or log == "yes") and not _are_integers(values) else 1.0
    takes_log = log == "yes" or (log == "auto" and smallest >= 0 and _is_less_skewed_by_log(values, shift))
    low, high = _prediction_bounds(name, smallest, largest, bounds)
    if takes_log and not bounds:
        low = 0.0 if shift else smallest / 1.2
    elif takes_log and low + shift <= 0:
        low = smallest / 1.2
    return TargetScale(log=takes_log, shift=shift if takes_log else 0.0, low=low, high=high)


def _are_integers(values: FloatArray) -> bool:
    return bool((values == np.round(values)).all())


def _is_less_skewed_by_log(values: FloatArray, shift: float) -> bool:
    skew = _skewness(values)
    return skew > _SKEWED and abs(_skewness(np.log(values + shift))) < skew


def _skewness(values: FloatArray) -> float:
    centred = values - values.mean()
    return float((centred**3).mean() / max(float((centred**2).mean()), 1e-30) ** 1.5)


def _prediction_bounds(name: str, smallest: float, largest: float, bounds: Sequence[str]) -> tuple[float, float]:
    margin = 0.2 * (largest - smallest)
    if not bounds:
        return max(smallest - margin, 0.0) if smallest >= 0 else smallest - margin, largest + margin
    try:
        low, high = (float(bound) for bound in bounds)
    except ValueError:
        raise CannotTrain(f"--bounds {','.join(bounds)}: give two numbers, such as 0,1000.") from None
    if not low <= smallest < largest <= high:
        raise CannotTrain(
            f"--bounds {low:g},{high:g} exclude values of '{name}', which are {smallest:g} to {largest:g}."
        )
    return low, high
