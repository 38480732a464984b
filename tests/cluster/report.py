"""Steps of a run: one line each with its time, a table at the end, JSON, and a section of the documentation."""

import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtests.document import with_section as document_with_section
from tests.cluster.api import ApiError
from tests.cluster.control_plane import Cluster
from tests.cluster.helm import Helm, HelmError
from tests.cluster.processes import ClusterError

BEGIN, END = "<!-- cluster: begin -->", "<!-- cluster: end -->"
_WIDTH = 300
_USUAL = ("validate", "install", "no change", "upgrade", "rollback", "twice", "uninstall")
EXPECTED = (ApiError, HelmError, ClusterError, AssertionError)
"""Errors whose text says what is wrong; of others, the kind is told too."""


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
    kubernetes: str = ""


class StepFailed(Exception):
    """A step failed, and with it what follows in the same case."""


@dataclass
class Recorder:
    """Runs steps, prints a line for each, and keeps them."""

    steps: list[Step] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    kubernetes: str = ""

    @contextmanager
    def step(self, case: str, who: str, name: str) -> Iterator[Step]:
        """Time a step. A failure is recorded and raised as StepFailed."""
        step = Step(case, who, name, kubernetes=self.kubernetes)
        start = time.monotonic()
        try:
            yield step
            step.ok = True
        except Exception as error:
            step.detail = str(error) if isinstance(error, EXPECTED) and str(error) else repr(error)
            raise StepFailed(step.detail) from error
        finally:
            step.seconds = time.monotonic() - start
            self.steps.append(step)
            self._print(step)

    @contextmanager
    def case(self, name: str, who: str) -> Iterator[None]:
        """Go on with the next case whatever happens in this one. What fails outside its steps is a step of its own."""
        try:
            yield
        except StepFailed:
            pass
        except Exception as error:
            with suppress(StepFailed), self.step(name, who, "set up"):
                raise error

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
    """Return a row for each case with the same steps, as Markdown; cases with other steps get a table of their own."""
    cases: dict[tuple[str, str, str], dict[str, Step]] = {}
    for step in steps:
        cases.setdefault((step.case, step.kubernetes, step.who), {})[step.name] = step
    tables: dict[tuple[str, ...], list[str]] = {}
    order = _column_groups(cases.values())
    for (case, kubernetes, who), done in cases.items():
        names = order[next(iter(done))]
        cells = " | ".join(_cell(done.get(name)) for name in names)
        seconds = sum(step.seconds for step in done.values())
        tables.setdefault(names, []).append(f"| {case} | {kubernetes} | {who} | {cells} | {seconds:.0f} |")
    return "\n\n".join("\n".join([_header(names), *rows]) for names, rows in tables.items())


def _column_groups(cases: Iterable[Mapping[str, Step]]) -> dict[str, tuple[str, ...]]:
    """Return the columns of the table that a case belongs to, by its first step: a case that failed has fewer."""
    columns: dict[str, dict[str, None]] = {}
    for done in cases:
        columns.setdefault(next(iter(done)), {}).update(dict.fromkeys(done))
    return {first: tuple(names) for first, names in columns.items()}


def _header(names: Sequence[str]) -> str:
    return f"| case | Kubernetes | Helm | {' | '.join(names)} | seconds |\n|---|---|---|{'---|' * len(names)}---|"


def _cell(step: Step | None) -> str:
    if step is None:
        return "–"
    return "yes" if step.ok else "**no**"


def describe(cluster: Cluster, helms: Sequence[Helm]) -> dict[str, str]:
    """Return the versions of everything that takes part."""
    return {
        "kubernetes": cluster.binaries.version,
        "etcd": version_of(cluster.binaries.etcd, "--version"),
        "kwok": version_of(cluster.binaries.kwok, "--version"),
        "kubectl": version_of(cluster.binaries.kubectl, "version", "--client"),
        "helm": ", ".join(helm.version() for helm in helms),
        "crds": ", ".join(cluster.crds.values()),
    }


def version_of(program: Path, *arguments: str) -> str:
    """Return the first number with dots that a program prints."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30, check=False)
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    return found.group() if found else "unknown"


def to_json(
    steps: Sequence[Step], versions: Sequence[Mapping[str, str]], machine: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Return the result of a run for a file."""
    return {
        "measured": dict(machine),
        "versions": [dict(each) for each in versions],
        "seconds": round(seconds, 1),
        "steps": [asdict(step) for step in steps],
    }


def section(
    steps: Sequence[Step], versions: Sequence[Mapping[str, str]], machine: Mapping[str, Any], seconds: float
) -> str:
    """Return the text between the marks of the document."""
    good = sum(step.ok for step in steps)
    summary = (
        f"Run on {machine['when'][:10]} at commit `{machine['commit']}`, on {machine['cores']} cores, "
        f"in {seconds:.0f} s: {good} of {len(steps)} steps ended well."
    )
    programs = [
        f"- Kubernetes {each['kubernetes']} (etcd {each['etcd']}, kwok {each['kwok']}, kubectl {each['kubectl']}), "
        f"Helm {each['helm']}, custom kinds of {each['crds']}"
        for each in versions
    ]
    return "\n".join([summary, "", *programs, "", table(steps), *_notes(steps)])


def _notes(steps: Sequence[Step]) -> list[str]:
    """Return what was seen in the cases that are not files of values, and what failed."""
    notes = [step for step in steps if step.detail and (not step.ok or step.name not in _USUAL)]
    lines = dict.fromkeys(f"- {step.case}, {step.name}: {_quoted(step.detail)}" for step in notes)
    return ["", *lines] if lines else []


def _quoted(text: str) -> str:
    return shorten(text).replace("|", "/").replace("<", "&lt;")


def with_section(document: str, text: str) -> str:
    """Return the document with `text` between its marks; an empty document gets a heading and the marks.

    Raises:
        ClusterError: the document lacks a mark, or has one twice.
    """
    try:
        return document_with_section(document or f"# Tested\n\n{BEGIN}\n{END}\n", "cluster", text)
    except ValueError as error:
        raise ClusterError(str(error)) from error
