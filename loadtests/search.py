"""The highest rate at which an objective holds: bracketing, then bisection, with repeats.

It only calls `measure`, so that it can be tested without a server and without waiting.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from loadtests.open_loop import Trial

Measure = Callable[[float], Awaitable[Trial]]
_MAX_STEPS = 24
_MAX_VOID = 2
_LOWEST = 1 / 16
"""Of the first rate: if the objective does not hold there, it holds nowhere."""


@dataclass(frozen=True)
class Objective:
    """What has to hold at a rate.

    Attributes:
        min_answered: the fraction of the offered requests that has to be answered.
    """

    p99_ms: float
    min_answered: float = 0.99

    def problem(self, trial: Trial) -> str:
        """Return why a trial does not hold; an empty text if it does."""
        if not trial.offered:
            return "no request was offered"
        # One request alone never decides, in a trial so short that it is more than one in a hundred.
        if trial.offered - trial.answered > max(1.0, (1 - self.min_answered) * trial.offered):
            return f"answered {trial.answered_ratio:.1%} of the offered requests"
        if trial.p99_ms > self.p99_ms:
            return f"p99 {trial.p99_ms:.0f} ms"
        if trial.p99_by_window[-1] > self.p99_ms:
            return f"p99 {trial.p99_by_window[-1]:.0f} ms in the last third: a queue grows"
        return ""


class ClientLimited(Exception):
    """The client could not offer a rate, however often it tried; the message says what held it up."""


@dataclass(frozen=True)
class Capacity:
    """The result of a search.

    Attributes:
        per_second: the highest rate at which the objective held; 0 if there was none.
        upper: the lowest rate at which it did not hold; None if every rate held that the client could offer.
        trials: all trials, in the order in which they were measured.
        limit: why the search ended early; empty if it did not.
    """

    per_second: float
    upper: float | None
    trials: Sequence[Trial]
    limit: str = ""


@dataclass
class _Search:
    measure: Measure
    objective: Objective
    repeats: int
    trials: list[Trial] = field(default_factory=list)
    votes: dict[float, list[bool]] = field(default_factory=dict)

    async def holds(self, rate: float, *, at_most: int) -> bool:
        """Return what most trials at this rate say; no more are made than are needed to know."""
        votes = self.votes.setdefault(rate, [])
        while max(votes.count(True), votes.count(False)) * 2 <= at_most:
            votes.append(not self.objective.problem(await self._measure(rate)))
        return votes.count(True) > votes.count(False)

    async def _measure(self, rate: float) -> Trial:
        for _ in range(1 + _MAX_VOID):
            trial = await self.measure(rate)
            self.trials.append(trial)
            if not trial.void:
                return trial
        raise ClientLimited(f"at {rate:.4g}/s {trial.void}")


async def find_capacity(
    measure: Measure, objective: Objective, *, start: float, tolerance: float = 0.05, repeats: int = 3
) -> Capacity:
    """Search the capacity from this rate on.

    The rate is doubled while the objective holds in one trial, or halved until it does. Then the interval is bisected
    until it is narrower than `tolerance`, by the majority of `repeats` trials at each rate.
    """
    search = _Search(measure, objective, repeats)
    low, high, rate, limit = 0.0, math.inf, start, ""
    try:
        for _ in range(_MAX_STEPS):
            rate = _next_rate(low, high, rate)
            if rate < _LOWEST * start:
                break
            if low > 0 and high < math.inf and high / low <= 1 + tolerance:
                if await search.holds(low, at_most=repeats):  # It may have been tried only once.
                    break
                low, high = low / (1 + 2 * tolerance), low
            elif await search.holds(rate, at_most=1 if high == math.inf or low == 0 else repeats):
                low = max(low, rate)
            else:
                high = min(high, rate)
    except ClientLimited as error:
        limit = str(error)
    return Capacity(low, None if high == math.inf else high, search.trials, limit)


def _next_rate(low: float, high: float, start: float) -> float:
    if high == math.inf:
        return 2 * low or start
    return high / 2 if low == 0 else math.sqrt(low * high)
