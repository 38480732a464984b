"""Canary evaluation: compare a new version's answers and timings with the served version's, and decide by a policy.

Independent of models and of how requests are mirrored.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from statistics import median

_THREAD_OVERHEAD_S = 0.002
"""Added to the timings of both versions. Handing a request between threads of a busy machine costs up to this much,
which would otherwise dominate the ratio of two fast versions."""
_MAX_WORST = 5
_MAX_FAILURES = 5


@dataclass(frozen=True)
class PromotionPolicy:
    """The conditions under which a version is promoted.

    Attributes:
        requests: number of requests to evaluate.
        min_agreement: minimum mean agreement of its answers with those of the served version, 0 to 1.
        max_slowdown: maximum ratio of its duration to that of the served version, for the median request.
        max_failures: maximum fraction of requests that it may fail.
    """

    requests: int = 200
    min_agreement: float = 0.9
    max_slowdown: float = 1.5
    max_failures: float = 0.0


@dataclass(frozen=True)
class Timing:
    """Durations of one request, in seconds.

    Attributes:
        device_s: the run of the batch that the request was in.
        work_s: all steps without waiting. Mirrored requests have the lowest priority, so that their waiting times say
            nothing about the version.
        total_s: all steps, with waiting.
    """

    device_s: float
    work_s: float
    total_s: float


@dataclass(frozen=True)
class Comparison:
    """A request that both versions answered.

    `served_first` says which version was timed first: the second one may find warm caches.
    """

    request_id: str
    served: Timing
    shadow: Timing
    agreement: float
    served_first: bool = True


@dataclass(frozen=True)
class Failure:
    """A request that the evaluated version failed to answer."""

    request_id: str
    reason: str


@dataclass(frozen=True)
class Decision:
    """The outcome of an evaluation, and the reason for it; `promoted` is None if it was stopped."""

    promoted: bool | None
    reason: str


@dataclass
class TimingSeries:
    """The timings of one version, in seconds."""

    device_s: list[float] = field(default_factory=list)
    work_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)

    def add(self, timing: Timing) -> None:
        """Append the timing of a request."""
        self.device_s.append(timing.device_s)
        self.work_s.append(timing.work_s)
        self.total_s.append(timing.total_s)


class ShadowEvaluation:
    """The evaluation of one version.

    The decision is made after as many requests as the policy requires, or earlier if even perfect answers to all
    remaining requests could not change it. Results after the decision are ignored, which bounds the memory used.
    """

    def __init__(self, policy: PromotionPolicy, *, clock: Callable[[], float] = time.time) -> None:
        self.policy = policy
        self.decision: Decision | None = None
        self.served, self.shadow = TimingSeries(), TimingSeries()
        self.skipped = 0
        self.failed = 0
        self.first_failures: list[Failure] = []
        self.started_at = clock()
        self.decided_at: float | None = None
        self._clock = clock
        self._agreement_sum = 0.0
        self._ratios: tuple[list[float], list[float]] = ([], [])
        """Slowdown per request: those timed with the shadow first, then those with the served version first."""
        self._worst: list[tuple[float, str]] = []
        """A heap of negated agreements with their request ids."""

    @property
    def compared(self) -> int:
        """Number of requests that both versions answered."""
        return len(self.shadow.work_s)

    @property
    def requests(self) -> int:
        """Number of requests that count: compared or failed."""
        return self.compared + self.failed

    @property
    def agreement(self) -> float | None:
        """Mean agreement; None before the first comparison."""
        return self._agreement_sum / self.compared if self.compared else None

    @property
    def slowdown(self) -> float | None:
        """Ratio of the version's duration, without waiting, to that of the served version: the median over requests.

        To cancel the advantage of running second, it is the geometric mean of two medians, one for each order.
        """
        medians = [median(ratios) for ratios in self._ratios if ratios]
        return math.prod(medians) ** (1 / len(medians)) if medians else None

    @property
    def worst(self) -> list[tuple[str, float]]:
        """Ids and agreements of the requests whose answers agree least, worst first."""
        return [(request_id, -negated) for negated, request_id in sorted(self._worst, reverse=True)]

    def skip(self) -> None:
        """Count a request that was not mirrored because clients needed the device."""
        self.skipped += self.decision is None

    def add(self, result: Comparison | Failure) -> Decision | None:
        """Record a result; return the decision if this result brought it about."""
        if self.decision is not None:
            return None
        if isinstance(result, Failure):
            self.failed += 1
            self.first_failures = [*self.first_failures, result][:_MAX_FAILURES]
        else:
            self._add_comparison(result)
        self.decision = self._decide()
        if self.decision is not None:
            self.decided_at = self._clock()
        return self.decision

    def accept(self, decision: Decision) -> None:
        """End the evaluation with a decision that another process of this server has made."""
        self.decision, self.decided_at = decision, self.decided_at or self._clock()

    def stop(self, reason: str) -> None:
        """End the evaluation without a result. Has no effect after the decision."""
        if self.decision is None:
            self.decision, self.decided_at = Decision(None, reason), self._clock()

    def _add_comparison(self, comparison: Comparison) -> None:
        self.served.add(comparison.served)
        self.shadow.add(comparison.shadow)
        self._agreement_sum += comparison.agreement
        ratio = (comparison.shadow.work_s + _THREAD_OVERHEAD_S) / (comparison.served.work_s + _THREAD_OVERHEAD_S)
        self._ratios[comparison.served_first].append(ratio)
        if len(self._worst) < _MAX_WORST:
            heappush(self._worst, (-comparison.agreement, comparison.request_id))
        else:
            heappushpop(self._worst, (-comparison.agreement, comparison.request_id))

    def _decide(self) -> Decision | None:
        policy, remaining = self.policy, self.policy.requests - self.requests
        if self.failed > policy.max_failures * policy.requests:
            first = f" First failure: {self.first_failures[0].reason}" if self.first_failures else ""
            return Decision(
                False,
                f"It failed {self.failed} of {self.requests} requests; at most {policy.max_failures:.2%} of "
                f"{policy.requests} may fail.{first}",
            )
        best_agreement = (self._agreement_sum + remaining) / max(1, self.compared + remaining)
        if best_agreement < policy.min_agreement - 1e-9:
            return Decision(
                False,
                f"Its mean agreement with the served version is {self.agreement or 0:.3f} over {self.compared} "
                f"requests; at least {policy.min_agreement:g} is required.",
            )
        if remaining > 0:
            return None
        slowdown = self.slowdown
        if slowdown is not None and slowdown > policy.max_slowdown:
            return Decision(
                False,
                f"Its median request takes {slowdown:.2f} times as long as the served version's "
                f"({_format_median(self.shadow.work_s)} and {_format_median(self.served.work_s)}); at most "
                f"{policy.max_slowdown:g} times is allowed.",
            )
        return Decision(True, self._summarise())

    def _summarise(self) -> str:
        agreement, slowdown = self.agreement, self.slowdown
        if agreement is None or slowdown is None:
            return f"It failed all {self.requests} requests, which the policy allows."
        return (
            f"It failed {self.failed} of {self.requests} requests; mean agreement is {agreement:.3f}, and the median "
            f"request takes {slowdown:.2f} times as long as the served version's."
        )


def _format_median(seconds: Sequence[float]) -> str:
    return f"{median(seconds) * 1000:.3g} ms"


def percentile(values: Sequence[float], fraction: float) -> float | None:
    """Return the percentile by the nearest-rank method (0.95 for the 95th); None if there are no values."""
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)] if values else None
