"""The trial of a new version: what it answered, beside what was answered, and the rule that judges it.

Knows nothing of how requests are mirrored, of models and of time but its clock's.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from statistics import median

_HAND_OVERS_S = 0.002
"""Added to both sides: what a request loses on a busy machine, handed from thread to thread, says nothing of a version
that takes less than that."""
_WORST = 5
_MAX_ERRORS = 5


@dataclass(frozen=True)
class PromotionPolicy:
    """When a version is promoted.

    Attributes:
        requests: how many are compared before it is judged.
        agreement: the least mean agreement of its answers with those that were given, 0…1.
        slowdown: how many times as long its median request may take.
        errors: the share of requests that it may fail.
    """

    requests: int = 200
    agreement: float = 0.9
    slowdown: float = 1.5
    errors: float = 0.0


@dataclass(frozen=True)
class Timing:
    """Seconds of one request.

    Attributes:
        device_s: of the batch that it was in.
        work_s: of all steps together, without waiting: what is mirrored has to wait for everybody, by design.
        total_s: with waiting.
    """

    device_s: float
    work_s: float
    total_s: float


@dataclass(frozen=True)
class Compared:
    """A request that both versions answered, with what it took the one that is served and the one that is tried.

    `served_first` says which was asked first; who is second finds caches warm, or meets the next client.
    """

    request_id: str
    ours: Timing
    theirs: Timing
    agreement: float
    served_first: bool = True


@dataclass(frozen=True)
class Failed:
    """A request that the version failed, and how."""

    request_id: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """What became of a version, and why."""

    promoted: bool
    reason: str


@dataclass
class Times:
    """The timings of one side."""

    device_s: list[float] = field(default_factory=list)
    work_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)

    def add(self, timing: Timing) -> None:
        """Takes note of a request."""
        self.device_s.append(timing.device_s)
        self.work_s.append(timing.work_s)
        self.total_s.append(timing.total_s)


class CanaryEvaluation:
    """One version's trial. Once it is decided, nothing changes it any more, so it never holds more than the rule asks.

    The decision is made as soon as it cannot come out otherwise: after as many requests as the rule wants, or earlier
    where the version could not pass with the best of answers to all that are still to come.
    """

    def __init__(self, rule: PromotionPolicy, *, clock: Callable[[], float] = time.time) -> None:
        self.rule = rule
        self.decision: Decision | None = None
        self.ours, self.theirs = Times(), Times()
        self.skipped = 0
        self.failed = 0
        self.errors: list[Failed] = []
        """The first few."""
        self.began = clock()
        self.decided: float | None = None
        self._clock = clock
        self._agreements = 0.0
        self._ratios: tuple[list[float], list[float]] = ([], [])
        self._least: list[tuple[float, str]] = []

    @property
    def answered(self) -> int:
        """Requests that both versions answered."""
        return len(self.theirs.work_s)

    @property
    def requests(self) -> int:
        """Requests that count: answered or failed."""
        return self.answered + self.failed

    @property
    def agreement(self) -> float | None:
        """The mean; None before there is an answer."""
        return self._agreements / self.answered if self.answered else None

    @property
    def slowdown(self) -> float | None:
        """How many times as long the version takes as the served one, without waiting: the median of all requests.

        The mean (geometric) of the medians of those requests that one was asked first and those that the other was.
        """
        medians = [median(ratios) for ratios in self._ratios if ratios]
        return math.prod(medians) ** (1 / len(medians)) if medians else None

    @property
    def worst(self) -> list[tuple[str, float]]:
        """The requests whose answers agree least, with their agreement; the worst first."""
        return [(request_id, -negated) for negated, request_id in sorted(self._least, reverse=True)]

    def skip(self) -> None:
        """A request was not mirrored: there was no room for it beside what clients ask."""
        self.skipped += self.decision is None

    def add(self, seen: Compared | Failed) -> Decision | None:
        """Takes note of a request; the decision, if this one made it."""
        if self.decision is not None:
            return None
        if isinstance(seen, Failed):
            self.failed += 1
            self.errors = [*self.errors, seen][:_MAX_ERRORS]
        else:
            self._add_answer(seen)
        self.decision = self._judged()
        if self.decision is not None:
            self.decided = self._clock()
        return self.decision

    def _add_answer(self, compared: Compared) -> None:
        self.ours.add(compared.ours)
        self.theirs.add(compared.theirs)
        self._agreements += compared.agreement
        ratio = (compared.theirs.work_s + _HAND_OVERS_S) / (compared.ours.work_s + _HAND_OVERS_S)
        self._ratios[compared.served_first].append(ratio)
        if len(self._least) < _WORST:
            heappush(self._least, (-compared.agreement, compared.request_id))
        else:
            heappushpop(self._least, (-compared.agreement, compared.request_id))

    def _judged(self) -> Decision | None:
        rule, left = self.rule, self.rule.requests - self.requests
        if self.failed > rule.errors * rule.requests:
            first = f"; the first: {self.errors[0].reason}" if self.errors else ""
            return Decision(
                False,
                f"It failed {self.failed} of {self.requests} requests, and may fail {rule.errors:.2%} of "
                f"{rule.requests}{first}",
            )
        # What is still to come may agree entirely, but no more than that.
        best = (self._agreements + left) / max(1, self.answered + left)
        if best < rule.agreement - 1e-9:
            mean = f"{self.agreement or 0:.3f}"
            return Decision(
                False,
                f"Its answers agree with those that were given by {mean} on average of {self.answered} requests, and "
                f"{rule.agreement:g} is wanted.",
            )
        if left > 0:
            return None
        slowdown = self.slowdown
        if slowdown is not None and slowdown > rule.slowdown:
            return Decision(
                False,
                f"It takes {slowdown:.2f} times as long (median; {_ms(self.theirs.work_s)} for "
                f"{_ms(self.ours.work_s)}), and {rule.slowdown:g} times is allowed.",
            )
        return Decision(True, self._passed())

    def _passed(self) -> str:
        agreement, slowdown = self.agreement, self.slowdown
        if agreement is None or slowdown is None:
            return f"It failed all of {self.requests} requests, which the rule allows."
        return (
            f"Of {self.requests} requests it failed {self.failed}; its answers agree by {agreement:.3f}, and it takes "
            f"{slowdown:.2f} times as long (median)."
        )


def _ms(seconds: Sequence[float]) -> str:
    return f"{median(seconds) * 1000:.3g} ms"


def at_share(values: Sequence[float], share: float) -> float | None:
    """The value that this share of all does not exceed (0.95: the 95th percentile, nearest rank); None of no values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None
