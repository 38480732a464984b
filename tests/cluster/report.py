"""Steps of a run: one line each with its time, a table at the end, JSON, and a section of the documentation."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from tests.cluster.api import ApiError
from tests.cluster.helm import HelmError
from tests.cluster.processes import ClusterError

_WIDTH = 300
FAILURES = (ApiError, HelmError, ClusterError, AssertionError, httpx.HTTPError, OSError)


@dataclass
class Step:
    """A step of a case.

    Attributes:
        case: the values file, or what else was tried.
        who: the version of Helm, or "-".
        detail: what was seen, or why it failed.
    """

    case: str
    who: str
    name: str
    ok: bool = False
    seconds: float = 0.0
    detail: str = ""


class StepFailed(Exception):
    """A step failed, and with it what follows in the same case."""


@dataclass
class Recorder:
    """Runs steps, prints a line for each, and keeps them."""

    steps: list[Step] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def step(self, case: str, who: str, name: str) -> Iterator[Step]:
        """Time a step. A failure is recorded and raised as StepFailed."""
        step = Step(case, who, name)
        start = time.monotonic()
        try:
            yield step
            step.ok = True
        except FAILURES as error:
            step.detail = str(error) or repr(error)
            raise StepFailed(step.detail) from error
        finally:
            step.seconds = time.monotonic() - start
            self.steps.append(step)
            self._print(step)

    def _print(self, step: Step) -> None:
        mark = "ok    " if step.ok else "FAILED"
        detail = step.detail if not step.ok else shorten(step.detail)
        line = f"{time.monotonic() - self.started:7.1f} s  {mark}  {step.case:<22} {step.who:<8} {step.name:<12}"
        print(f"{line} {step.seconds:5.1f} s  {detail}", flush=True)


def shorten(text: str) -> str:
    """Return text as one line of limited length."""
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


def table(steps: Sequence[Step]) -> str:
    """Return a row for each case, with a column for each step, as Markdown."""
    names = list(dict.fromkeys(step.name for step in steps))
    rows: dict[tuple[str, str], dict[str, Step]] = {}
    for step in steps:
        rows.setdefault((step.case, step.who), {})[step.name] = step
    lines = [f"| case | Helm | {' | '.join(names)} | seconds |", "|---|---|" + "---|" * (len(names) + 1)]
    for (case, who), done in rows.items():
        cells = [_cell(done.get(name)) for name in names]
        lines.append(f"| {case} | {who} | {' | '.join(cells)} | {sum(step.seconds for step in done.values()):.0f} |")
    return "\n".join(lines)


def _cell(step: Step | None) -> str:
    if step is None:
        return ""
    return "yes" if step.ok else "**no**"


def to_json(steps: Sequence[Step], versions: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Return the result of a run for a file."""
    return {"versions": dict(versions), "seconds": round(seconds, 1), "steps": [asdict(step) for step in steps]}
