"""Whether a run kept its objectives: the 99th percentile of each model, and the ratio of failed requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """What was measured of one model."""

    name: str
    requests: int
    failures: int
    p99_ms: float

    @property
    def error_ratio(self) -> float:
        """The fraction of requests that failed."""
        return self.failures / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Verdict:
    """The measurements, and for each model why it did not keep the objectives; an empty text if it did."""

    measured: Sequence[Measured]
    problems: Mapping[str, str]

    @property
    def kept(self) -> bool:
        """Whether there were requests, and every model kept the objectives."""
        return bool(self.measured) and not any(self.problems.values())

    def table(self) -> str:
        """Return the verdict as text."""
        if not self.measured:
            return "Objectives: not kept, since no request was sent."
        width = max(len(one.name) for one in self.measured)
        lines = [
            f"  {one.name:{width}}  {one.requests:>8,} requests  p99 {one.p99_ms:>7,.0f} ms  "
            f"errors {one.error_ratio:.2%}  {self.problems[one.name] or 'kept'}"
            for one in self.measured
        ]
        return "\n".join([f"Objectives: {'kept' if self.kept else 'not kept'}", *lines])


@dataclass(frozen=True)
class Objectives:
    """The limits.

    Attributes:
        p99_ms: by name of the model; "all" holds for those that are not named. None is judged without a limit.
        max_error_ratio: the fraction of requests of a model that may fail.
    """

    p99_ms: Mapping[str, float]
    max_error_ratio: float

    def judge(self, measured: Sequence[Measured]) -> Verdict:
        """Compare the measurements with the limits."""
        return Verdict(measured, {one.name: "; ".join(self._problems(one)) for one in measured})

    def _problems(self, one: Measured) -> list[str]:
        problems = []
        limit = self.p99_ms.get(one.name, self.p99_ms.get("all"))
        if limit is not None and one.p99_ms > limit:
            problems.append(f"p99 above {limit:g} ms")
        if one.error_ratio > self.max_error_ratio:
            problems.append(f"more errors than {self.max_error_ratio:.2%}")
        return problems
