"""New versions are evaluated on mirrored traffic before they serve."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtests.clients import Reply, at_constant_rate, open_loop
from tests.faults.faulty_backend import graph_digest
from tests.faults.published_versions import other_weights, publish, same_graph, version_of
from tests.faults.report import Row, first_of
from tests.faults.sample_requests import KnownModel, ValidRequest, with_expected
from tests.faults.scenario import FIRST_VERSION, PATIENCE_S, ScenarioContext
from tests.faults.server_process import ServerProcess, run_server
from tests.waiting import wait_until

_PER_SECOND = 20
_SEGMENT_S = 0.5


class _Evaluations(threading.Thread):
    """Publishes candidates, each when the one before it has been decided.

    Attributes:
        reports: the server's report on each candidate.
        is_paused: whether no requests are to be sent.
        failure: an error of this thread.
    """

    def __init__(self, server: ServerProcess, models: Path, known: KnownModel, slowdown: float) -> None:
        super().__init__()
        self._server, self._models, self._known, self._slowdown = server, models, known, slowdown
        self.reports: dict[str, dict[str, Any]] = {}
        self.is_paused = False
        self.failure: BaseException | None = None

    def run(self) -> None:
        graph = self._known.graph
        candidates = {
            "good": same_graph(graph, "good"),
            "other weights": other_weights(graph, noise=1.0),
            "slow": same_graph(graph, "slow"),
            "failing": same_graph(graph, "failing"),
        }
        try:
            for version, (name, candidate) in enumerate(candidates.items(), int(FIRST_VERSION) + 1):
                self.reports[name] = self._evaluate(str(version), name, candidate)
        except BaseException as error:
            self.failure = error

    def _evaluate(self, version: str, name: str, graph: bytes) -> dict[str, Any]:
        """Publish a candidate and wait for the decision; a failing one fails only once the server has verified it."""
        server, digest = self._server, graph_digest(graph)
        server.fault(marks={digest: ("slow", self._slowdown)} if name == "slow" else {})
        self.is_paused = name == "failing"
        publish(self._models, self._known, version, graph)
        path = f"/v1/models/{self._known.name}/versions/{version}/shadow"
        wait_until(lambda: server.get(path)[0] == 200, timeout_s=PATIENCE_S, interval_s=0.02)
        if name == "failing":
            server.fault(marks={digest: ("raise", 0)})
            self.is_paused = False
        wait_until(lambda: bool(server.get(path)[1]["verdict"] != "running"), timeout_s=PATIENCE_S, interval_s=0.1)
        report: dict[str, Any] = server.get(path)[1]
        return report


def measure(context: ScenarioContext) -> list[Row]:
    """Candidates that are evaluated before they serve: a good one is promoted, bad ones are not, no client notices."""
    known, count = context.known["clothing"], context.pick(40, 8)
    # How slow the slow candidate is and how slow one may be: cores are shared, in a short run with other scenarios.
    slowdown, allowed = context.pick((6.0, 3.0), (20.0, 6.0))
    flags = ["--shadow", f"{known.name}=1.0", "--shadow-requests", str(count), "--shadow-slowdown", f"{allowed:g}"]
    flags += ["--rescan-seconds", context.pick("0.3", "0.1")]
    with context.copies(known.name) as models, run_server(models, *flags, faulty=True) as server:
        requests = with_expected(server.port, [known.valid_request(seed) for seed in range(20)])
        contents = [request.request for request in requests]
        scheduled = at_constant_rate(contents, per_second=_PER_SECOND, seconds=_SEGMENT_S)
        evaluations, replies = _Evaluations(server, models, known, slowdown), list[Reply]()
        evaluations.start()
        while evaluations.is_alive():
            if evaluations.is_paused:
                time.sleep(0.01)
            else:
                replies += open_loop(server.port, scheduled)
    if evaluations.failure is not None:
        raise evaluations.failure
    problems = [problem for reply in replies if (problem := _problem(reply, requests[reply.key]))]
    verdicts = {name: str(report["verdict"]) for name, report in evaluations.reports.items()}
    results = ", ".join(f"{name}: {verdict.replace('_', ' ')}" for name, verdict in verdicts.items())
    return [
        Row(
            "shadow",
            f"New versions are evaluated on mirrored traffic before they serve: {known.name}, {count} requests each",
            "good: promoted; other weights, slow, failing: rolled back; clients get correct answers",
            f"{results}; {len(problems)} of {len(replies)} answers wrong{first_of(problems)}",
            [verdict == "promoted" for verdict in verdicts.values()] == [True, False, False, False] and not problems,
            figures={"reports": evaluations.reports, "problems": problems[:10]},
        )
    ]


def _problem(reply: Reply, request: ValidRequest) -> str | None:
    """Return why an answer differs from that of the first version in more than the version's name, or None."""
    version = json.loads(request.expected)["version"].encode()
    body = reply.body.replace(b'"version":"%b"' % version_of(reply).encode(), b'"version":"%b"' % version)
    return request.problem(replace(reply, body=body))
