"""The measurement: servers in turn, over several rounds, with what disturbed repeated.

In a round, every server is started anew for each model, so that a start is measured as often as the rates, and no idle
server takes time from the one under load. What has been measured is kept in a file, line by line, so that a run that
was cut off goes on where it ended.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.contenders import OURS, Contender
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.machine_load import MachineLoad
from benchmarks.peers.processes import ServerProcess
from benchmarks.peers.questions import Question
from benchmarks.peers.wrk import Load, NoWrk, run_wrk

MAX_SPREAD = 0.10
"""A sample that differs from the median of its cell by more is noisy."""
MAX_OTHERS = 0.15
"""A sample during which other programs used more cores than this is noisy."""
MAX_FAILURES = 2
"""A server that failed so often with a model is left out of the further rounds with it."""
_WARM_UP_S = 2.0
"""Load before each sample that is not counted; no longer than the sample."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        models: names of models.
        connections: numbers of connections.
        seconds: duration of each sample.
        rounds: how often everything is measured.
        repeats: how many more rounds there are at most, for what was noisy.
    """

    models: tuple[str, ...]
    connections: tuple[int, ...]
    seconds: float
    rounds: int
    repeats: int


@dataclass(frozen=True)
class Sample:
    """One load on one server; `others` is how many cores other programs used meanwhile."""

    connections: int
    per_second: float
    p50_ms: float
    p99_ms: float
    errors: int
    others: float


@dataclass(frozen=True)
class Visit:
    """One start of one server with one model: the loads, or why there are none.

    Attributes:
        start_s: seconds from the start to the first right answer.
        idle_mb: memory of all its processes then.
        loaded_mb: the same after the loads.
        failure: why the server could not be measured.
    """

    model: str
    name: str
    turn: int
    start_s: float = 0.0
    idle_mb: float = 0.0
    loaded_mb: float = 0.0
    samples: tuple[Sample, ...] = ()
    failure: str = ""


def noisy_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Return those of one cell (a server, a model, a number of connections) that should be measured again.

    Other programs disturbed them, or they are far from the median.
    """
    median = statistics.median(sample.per_second for sample in samples)
    return [
        sample
        for sample in samples
        if sample.others > MAX_OTHERS or abs(sample.per_second - median) > MAX_SPREAD * median
    ]


def counted_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples of a cell that count: all that other programs did not disturb, or all if each was disturbed.

    One that is only far from the median counts: leaving it out would choose figures by their value.
    """
    return [sample for sample in samples if sample.others <= MAX_OTHERS] or list(samples)


def cells_to_repeat(visits: Iterable[Visit], rounds: int) -> dict[tuple[str, str], list[int]]:
    """Return the numbers of connections to measure again, by model and server: fewer than `rounds` quiet samples."""
    repeat: dict[tuple[str, str], list[int]] = {}
    for (model, name, connections), samples in cells_of(visits).items():
        if len(samples) - len(noisy_samples(samples)) < rounds:
            repeat.setdefault((model, name), []).append(connections)
    return repeat


def cells_of(visits: Iterable[Visit]) -> dict[tuple[str, str, int], list[Sample]]:
    """Return all samples by model, server and number of connections."""
    cells: dict[tuple[str, str, int], list[Sample]] = {}
    for visit in visits:
        for sample in visit.samples:
            cells.setdefault((visit.model, visit.name, sample.connections), []).append(sample)
    return cells


@dataclass
class Log:
    """The file in which visits are kept, one a line; the first line says what the run is about.

    Attributes:
        path: the file.
        visits: what it holds.
    """

    path: Path
    visits: list[Visit] = field(default_factory=list)

    @classmethod
    def begin(cls, path: Path, head: Mapping[str, Any]) -> "Log":
        """Begin an empty file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(head) + "\n", "utf-8")
        return cls(path)

    @classmethod
    def resume(cls, path: Path, head: Mapping[str, Any]) -> "Log":
        """Read the file of a run that was cut off; begin one if there is none.

        Raises ValueError if it is of a run with other settings or of another commit.
        """
        if not path.exists():
            return cls.begin(path, head)
        first, *lines = path.read_text("utf-8").splitlines()
        if json.loads(first) != json.loads(json.dumps(head)):
            raise ValueError(f"{path} is of a run with other settings: {first}. Use the same, or leave out --resume.")
        log = cls(path, [visit for line in lines if (visit := _read_visit(line))])
        path.write_text("\n".join([first, *(json.dumps(asdict(visit)) for visit in log.visits), ""]), "utf-8")
        return log

    def add(self, visit: Visit) -> None:
        """Add a visit."""
        self.visits.append(visit)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(visit)) + "\n")

    def has(self, model: str, name: str, turn: int) -> bool:
        """Return whether this visit has been made."""
        return any((visit.model, visit.name, visit.turn) == (model, name, turn) for visit in self.visits)

    def failures(self, model: str, name: str) -> int:
        """Return how often the server could not be measured with this model."""
        return sum(bool(visit.failure) for visit in self.visits if (visit.model, visit.name) == (model, name))


def _read_visit(line: str) -> Visit | None:
    try:
        values = json.loads(line)
    except ValueError:  # The line was being written when the run was cut off.
        return None
    return Visit(**{**values, "samples": tuple(Sample(**sample) for sample in values["samples"])})


@dataclass(frozen=True)
class Measurement:
    """Measures contenders by a plan.

    Attributes:
        contenders: by name; the service is among them.
        models: the folder of the models.
        plan: what is measured.
        log: where it is kept.
        send_load: loads a port with a request; `run_wrk`, or a fake.
        tell: prints progress.
    """

    contenders: Mapping[str, Contender]
    models: Path
    plan: Plan
    log: Log
    send_load: Callable[..., Load] = run_wrk
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def run(self) -> list[Visit]:
        """Measure everything that the log does not hold yet. Raises Unavailable if the service itself fails."""
        for model in self.plan.models:
            expected = self._expected(model)
            for turn in range(self.plan.rounds + self.plan.repeats):
                for name in self._order(turn):
                    connections = self._connections(model, name, turn)
                    is_left = self.log.failures(model, name) < MAX_FAILURES and not self.log.has(model, name, turn)
                    if connections and is_left:
                        self._visit(model, name, turn, connections, expected)
        return self.log.visits

    def _expected(self, model: str) -> Any:
        ours = self.contenders[OURS]
        with ours.start(self.models, model, None) as server:
            return ours.question(self.models, model).ask(server.port)[1]

    def _order(self, turn: int) -> list[str]:
        """Every other round goes backwards, so that what drifts meets all alike."""
        names = list(self.contenders)
        return names[::-1] if turn % 2 else names

    def _connections(self, model: str, name: str, turn: int) -> list[int]:
        if turn < self.plan.rounds:
            return list(self.plan.connections)
        earlier = (visit for visit in self.log.visits if visit.turn < turn)
        return cells_to_repeat(earlier, self.plan.rounds).get((model, name), [])

    def _visit(self, model: str, name: str, turn: int, connections: Sequence[int], expected: Any) -> None:
        contender = self.contenders[name]
        began = time.monotonic()
        try:
            with contender.start(self.models, model, expected) as server:
                question = contender.question(self.models, model)
                idle_mb = server.memory_mb
                samples = tuple(self._sample(server, question, number) for number in connections)
                visit = Visit(model, name, turn, server.start_s, idle_mb, server.memory_mb, samples)
        except (Unavailable, NoWrk, OSError) as error:
            visit = Visit(model, name, turn, failure=str(error) or type(error).__name__)
        self.log.add(visit)
        rates = ", ".join(f"{sample.connections}: {sample.per_second:.0f}/s" for sample in visit.samples)
        self.tell(f"{model}, round {turn + 1}, {name}: {visit.failure or rates} ({time.monotonic() - began:.0f} s)")

    def _sample(self, server: ServerProcess, question: Question, connections: int) -> Sample:
        send = (server.port, question.path, question.payload)
        self.send_load(*send, connections=connections, seconds=min(_WARM_UP_S, self.plan.seconds))
        with MachineLoad(server) as machine:
            load = self.send_load(*send, connections=connections, seconds=self.plan.seconds)
        return Sample(connections, load.per_second, load.p50_ms, load.p99_ms, load.errors, machine.others)


def summarize(visits: Sequence[Visit], contenders: Sequence[str], plan: Plan) -> list[dict[str, Any]]:
    """Return one record for each model and server that was measured: medians, errors, and the samples themselves."""
    cells = cells_of(visits)
    records = []
    for model in plan.models:
        for name in contenders:
            own = [visit for visit in visits if (visit.model, visit.name) == (model, name) and visit.samples]
            if own:
                loads = [_summarize_cell(c, cells[model, name, c]) for c in plan.connections]
                figures = {key: _median(getattr(visit, key) for visit in own) for key in _OF_A_VISIT}
                records.append({"model": model, "name": name, **figures, "loads": loads})
    return records


_OF_A_VISIT = ("start_s", "idle_mb", "loaded_mb")


def _summarize_cell(connections: int, samples: Sequence[Sample]) -> dict[str, Any]:
    counted = counted_samples(samples)
    return {
        "connections": connections,
        **{key: _median(getattr(s, key) for s in counted) for key in ("per_second", "p50_ms", "p99_ms")},
        "errors": sum(sample.errors for sample in samples),
        "noisy": len(noisy_samples(samples)),
        "samples": [[round(sample.per_second, 1), round(sample.others, 2)] for sample in samples],
    }


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)
