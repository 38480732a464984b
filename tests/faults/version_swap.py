"""Versions are published, rejected and removed while requests come."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

from loadtests.clients import Reply, at_constant_rate, open_loop
from tasks.manifest import MODEL
from tests.faults.published_versions import answer_of, other_weights, publish, version_of, wrong_answer
from tests.faults.report import Row, first_of
from tests.faults.sample_requests import KnownModel
from tests.faults.scenario import PATIENCE_S, ScenarioContext
from tests.faults.server_process import ServerProcess, run_server
from tests.waiting import wait_until

_PER_SECOND = 50


class _Publisher(threading.Thread):
    """Publishes version 2, then a broken version 3, and removes version 3; it waits after each step.

    Attributes:
        rejection: why the server does not serve version 3.
        failure: an error of this thread.
    """

    def __init__(self, server: ServerProcess, models: Path, known: KnownModel, graph: bytes, wait_s: float) -> None:
        super().__init__()
        self._server, self._models, self._known, self._graph, self._wait_s = server, models, known, graph, wait_s
        self.rejection = ""
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._publish_and_remove()
        except BaseException as error:
            self.failure = error

    def _publish_and_remove(self) -> None:
        time.sleep(self._wait_s)
        publish(self._models, self._known, "2", self._graph)
        self._wait_for_state("2", state="ready")
        publish(self._models, self._known, "3", self._graph, broken=True)
        self.rejection = str(self._wait_for_state("3", reason=MODEL)["reason"])
        shutil.rmtree(self._models / self._known.name / "3")
        wait_until(lambda: self._version("3") is None, timeout_s=PATIENCE_S, interval_s=0.05)
        time.sleep(self._wait_s)

    def _wait_for_state(self, version: str, *, state: str = "", reason: str = "") -> dict[str, Any]:
        """Wait until the version has this state, for a reason that contains `reason`; then as long as after a step."""

        def has_state() -> bool:
            entry = self._version(version)
            return entry is not None and state in entry["state"] and reason in (entry["reason"] or "")

        wait_until(has_state, timeout_s=PATIENCE_S, interval_s=0.05)
        time.sleep(self._wait_s)
        return self._version(version) or {}

    def _version(self, version: str) -> dict[str, Any] | None:
        """Return what the server says about a version."""
        (model,) = self._server.get("/v1/models")[1]["models"]
        return next((v for v in model["versions"] if v["version"] == version), None)


def measure(context: ScenarioContext) -> list[Row]:
    """Version 1, then 2 with other weights, then a broken 3 that is removed again, at fifty requests a second."""
    known = context.known["adult"]
    graphs = {"1": known.graph, "2": other_weights(known.graph)}
    requests = [known.valid_request(seed) for seed in range(20)]
    expected = [
        {version: answer_of(known, graph, dict(request.fields)) for version, graph in graphs.items()}
        for request in requests
    ]
    flags = ("--rescan-seconds", context.pick("0.5", "0.1"))
    scheduled = at_constant_rate([request.request for request in requests], per_second=_PER_SECOND, seconds=0.5)
    with context.copies("adult") as models, run_server(models, *flags) as server:
        publisher, replies = _Publisher(server, models, known, graphs["2"], context.pick(2.5, 0.3)), list[Reply]()
        publisher.start()
        while publisher.is_alive():
            replies += open_loop(server.port, scheduled)
    if publisher.failure is not None:
        raise publisher.failure
    problems = [
        problem
        for reply in replies
        if (problem := wrong_answer(reply, expected[reply.key], known.manifest.golden_tolerance))
    ]
    order = list(dict.fromkeys(version_of(reply) for reply in replies if reply.status == 200))
    return [
        Row(
            "version_swap",
            f"Versions are swapped without errors: 1 → 2 → broken 3 → 2 at {_PER_SECOND} requests/s, "
            f"{len(replies)} requests",
            "each answer equals that of the version it names; version 3 is never served",
            f"{len(problems)} wrong answers{first_of(problems)}; versions served, in order: {' → '.join(order)}; "
            f"version 3: {publisher.rejection}",
            not problems and order == ["1", "2"],
            figures={"problems": problems[:10], "order": order},
        )
    ]
