"""Models and versions come, go and are rolled back while requests come: folders are moved, and an operator chooses."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.clients import Reply, at_constant_rate, open_loop, send_sequentially
from tests.faults.published_versions import answer_of, other_weights, publish, version_of, wrong_answer
from tests.faults.report import Row, first_of, ms
from tests.faults.sample_requests import KnownModel, ValidRequest
from tests.faults.scenario import FIRST_VERSION, PATIENCE_S, ScenarioContext
from tests.faults.server_process import ServerProcess, run_server
from tests.waiting import wait_until

_VERSIONED, _REMOVED, _NEIGHBOUR = "adult", "bikes", "movielens"
"""The model whose versions change, the one that goes and comes back, and one that stays."""
_REQUESTS, _PER_SECOND = 10, 60
_RESCAN_S = 0.5
_PAUSE_S = 3.1 * _RESCAN_S
"""Time after each step. The next step then comes just after a rescan, so that its effect takes as long as it can."""
_MAX_DELAY_S = 0.5
"""How much longer than an interval between two rescans it may take until a removed folder is no longer served."""


@dataclass(frozen=True)
class _Period:
    """A time in which a model may be answered by this version; None if it is not served. In seconds, monotonic."""

    version: str | None
    begins: float
    ends: float = math.inf


@dataclass
class _Timeline:
    """Which versions of a model may answer when. While one replaces another, both may."""

    periods: list[_Period]

    @contextmanager
    def change_to(self, version: str | None) -> Iterator[None]:
        """Record that a version replaces the one before, at some moment within the context."""
        began = time.monotonic()
        yield
        *earlier, last = self.periods
        self.periods = [*earlier, _Period(last.version, last.begins, time.monotonic()), _Period(version, began)]

    def allowed(self, reply: Reply) -> set[str | None]:
        """Return the versions that may have answered."""
        return {p.version for p in self.periods if p.begins <= reply.ended and reply.sent <= p.ends}

    @property
    def order(self) -> str:
        """The versions, one after the other."""
        versions = [period.version or "none" for period in self.periods]
        return " → ".join(v for i, v in enumerate(versions) if i == 0 or v != versions[i - 1])


@dataclass
class _Operator:
    """Changes what is served, step by step.

    Attributes:
        by_path: replies to requests that named a version which was not the default.
        seconds: how long it took until a change was seen, by what was done.
        outcomes: what the server answered to an operator, if it was not what it should have answered.
    """

    server: ServerProcess
    models: Path
    known: Mapping[str, KnownModel]
    graph: bytes
    pause_s: float
    timelines: Mapping[str, _Timeline]
    by_path: list[Reply] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    outcomes: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Carry out all steps. Raises TimeoutError if one has no effect."""
        self._publish("2")
        self._remove_and_bring_back(_VERSIONED, "2", then="1")
        self._remove_and_bring_back(_REMOVED, FIRST_VERSION, then=None)
        self._choose("roll back", "1", "promote", default="1")
        self._choose("roll forward", "2", "promote", default="2")
        self._choose("load beside", "1", "load", default="2")
        self._ask_by_path("1")
        self._choose("unload", "2", "unload", default="1")

    def _publish(self, version: str) -> None:
        with self._change("publish", _VERSIONED, version):
            publish(self.models, self.known[_VERSIONED], version, self.graph)

    def _remove_and_bring_back(self, name: str, version: str, *, then: str | None) -> None:
        """Hide the folder of a version, or that of the model if no version is left; `then` is served meanwhile."""
        folder = self.models / name / version if then else self.models / name
        hidden = folder.with_name(f".hidden-{folder.name}")
        what = "version" if then else "model"
        with self._change(f"remove a {what}", name, then):
            folder.rename(hidden)
        with self._change(f"bring a {what} back", name, version):
            hidden.rename(folder)

    def _choose(self, what: str, version: str, action: str, *, default: str) -> None:
        with self._change(what, _VERSIONED, default):
            status, answer = self.server.post(f"/v1/models/{_VERSIONED}/versions/{version}/{action}")
            if status != 200 or answer["default"] != default:
                self.outcomes.append(f"{what}: {status} {str(answer)[:120]}")

    def _ask_by_path(self, version: str) -> None:
        request = self.known[_VERSIONED].valid_request(0).request
        by_path = request.replace(b"/predict ", f"/versions/{version}/predict ".encode(), 1)
        self.by_path += send_sequentially(self.server.port, [by_path])

    @contextmanager
    def _change(self, what: str, name: str, version: str | None) -> Iterator[None]:
        """Wait until the change made in the context is seen, and then as long as after every step."""
        with self.timelines[name].change_to(version):
            began = time.monotonic()
            yield
            wait_until(lambda: self._default_of(name) == version, timeout_s=PATIENCE_S)
            self.seconds[what] = max(time.monotonic() - began, self.seconds.get(what, 0.0))
        time.sleep(self.pause_s)

    def _default_of(self, name: str) -> str | None:
        """Return the version that answers requests which name none; None if the model is not served."""
        status, answer = self.server.get(f"/v1/models/{name}")
        return str(answer["version"]) if status == 200 else None


def measure(context: ScenarioContext) -> list[Row]:
    """Versions are published, rolled back, unloaded and removed, and a model is removed, at sixty requests a second."""
    known = context.known
    graphs = {FIRST_VERSION: known[_VERSIONED].graph, "2": other_weights(known[_VERSIONED].graph)}
    names = (_VERSIONED, _REMOVED, _NEIGHBOUR)
    requests = [known[name].valid_request(seed) for seed in range(_REQUESTS) for name in names]
    answers = [_answers(request, graphs if request.model.name == _VERSIONED else {}) for request in requests]
    timelines = {name: _Timeline([_Period(FIRST_VERSION, -math.inf)]) for name in names}
    scheduled = at_constant_rate([request.request for request in requests], per_second=_PER_SECOND, seconds=0.5)
    flags = ("--admin", "--rescan-seconds", context.pick(str(_RESCAN_S), "0.1"))
    replies = list[Reply]()
    with context.copies(*names) as models, run_server(models, *flags) as server, ThreadPoolExecutor(1) as pool:
        operator = _Operator(server, models, known, graphs["2"], context.pick(_PAUSE_S, 0.1), timelines)
        done = pool.submit(operator.run)
        while not done.done():
            replies += open_loop(server.port, scheduled)
        done.result()
    tolerance, problems = known[_VERSIONED].manifest.golden_tolerance, [*operator.outcomes]
    problems += [f"by its path: {p}" for reply in operator.by_path if (p := wrong_answer(reply, answers[0], tolerance))]
    problems += [p for reply in replies if (p := _problem(reply, requests[reply.key], answers[reply.key], timelines))]
    return [_answers_row(len(replies), problems, timelines), _delay_row(context, operator.seconds)]


def _answers(request: ValidRequest, graphs: Mapping[str, bytes]) -> dict[str, dict[str, object]]:
    """Return the answer of each version; without graphs, that of the first version."""
    model = request.model
    return {
        version: answer_of(model, graph, dict(request.fields))
        for version, graph in (graphs or {FIRST_VERSION: model.graph}).items()
    }


def _problem(
    reply: Reply, request: ValidRequest, answers: Mapping[str, Mapping[str, object]], timelines: Mapping[str, _Timeline]
) -> str | None:
    """Return why a reply is not right at its moment, or None."""
    name = request.model.name
    allowed = timelines[name].allowed(reply)
    if None in allowed and (reply.status == 404 or (reply.status == 503 and b"model_unavailable" in reply.body)):
        return None  # It is not there, or not loaded yet.
    if reply.status == 200 and version_of(reply) not in allowed:
        return f"{name}: version {version_of(reply)} answered instead of {' or '.join(map(str, allowed))}"
    problem = wrong_answer(reply, answers, request.model.manifest.golden_tolerance)
    return problem and f"{name}: {problem}"


def _answers_row(count: int, problems: Sequence[str], timelines: Mapping[str, _Timeline]) -> Row:
    orders = {name: timelines[name].order for name in (_VERSIONED, _REMOVED)}
    return Row(
        "models_come_and_go",
        f"Models come and go without errors at {_PER_SECOND} requests/s, {count:,} requests: versions are published, "
        "rolled back, loaded, unloaded and removed; a model is removed and comes back",
        "each answer is that of the version which is served at that moment; 404 or, until it is "
        "loaded, 503 only for the model that is not there",
        f"{len(problems)} wrong{first_of(problems)}; "
        + "; ".join(f"{name}: {order}" for name, order in orders.items()),
        not problems and count > 0,
        figures={"problems": problems[:10], "orders": orders},
    )


def _delay_row(context: ScenarioContext, seconds: Mapping[str, float]) -> Row:
    limit_s = _RESCAN_S + _MAX_DELAY_S
    removed = {what: seconds[what] for what in ("remove a version", "remove a model")}
    return Row(
        "models_come_and_go",
        f"What is removed from the folder is no longer served after a rescan (every {ms(_RESCAN_S)})",
        f"≤ {ms(limit_s)}",
        f"version {ms(removed['remove a version'])}, model {ms(removed['remove a model'])}; "
        f"roll back by an operator {ms(seconds['roll back'])}",
        all(context.within(duration, limit_s) for duration in removed.values()),
        timed=True,
        figures={"seconds": dict(seconds)},
    )
