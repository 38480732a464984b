"""A new version is tried on what clients ask, and nobody notices but the report."""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backends.onnx import OnnxRuntime
from service.models.evaluation import CanaryEvaluation, Compared, Failed, PromotionPolicy, Timing, at_share
from service.settings import InvalidSetting, read_settings
from tasks.contract import Arrays, TensorSpec
from tests.model_folders import COLOURS, CREDIT, colours_graph, credit_graph, publish
from tests.service.conftest import Running, Start
from tests.service.models.test_version_swap import another

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}
RULE = PromotionPolicy(requests=10, agreement=0.9, slowdown=1.5, errors=0.1)


def timing(seconds: float = 0.01) -> Timing:
    return Timing(seconds / 2, seconds, seconds * 2)


def answered(number: int = 0, *, agreement: float = 1.0, seconds: float = 0.01) -> Compared:
    return Compared(f"r{number}", timing(), timing(seconds), agreement)


def failed(number: int = 0) -> Failed:
    return Failed(f"r{number}", "backend_failed: no")


def tried(*compared: Compared | Failed, rule: PromotionPolicy = RULE) -> CanaryEvaluation:
    trial = CanaryEvaluation(rule, clock=iter(range(100)).__next__)
    for one in compared:
        trial.add(one)
    return trial


class TestTheRule:
    """Of a trial, without a server."""

    def test_a_version_that_keeps_to_it_is_promoted_after_as_many_requests_as_it_says(self) -> None:
        before, after = tried(*[answered()] * 9), tried(*[answered()] * 10)

        assert before.decision is None
        assert after.decision is not None
        assert after.decision.promoted
        assert (after.began, after.decided) == (0, 1)

    def test_one_that_disagrees_is_rolled_back_as_soon_as_it_cannot_be_mended(self) -> None:
        trial = tried(*[answered(agreement=0.4)] * 3)

        assert trial.requests == 2
        assert trial.decision is not None
        assert trial.decision.reason == (
            "Its answers agree with those that were given by 0.400 on average of 2 requests, and 0.9 is wanted."
        )

    def test_one_that_fails_more_than_it_may_is_rolled_back_at_once(self) -> None:
        trial = tried(failed(1), answered(), failed(2), answered())

        assert trial.requests == 3
        assert trial.decision is not None
        assert not trial.decision.promoted
        assert trial.decision.reason.startswith("It failed 2 of 3 requests, and may fail 10.00% of 10")
        assert trial.errors == [failed(1), failed(2)]

    def test_one_that_is_slower_than_it_may_be_is_rolled_back_at_the_end(self) -> None:
        trial = tried(*[answered(seconds=0.02)] * 10)

        assert trial.decision is not None
        assert trial.decision.reason == (
            "It takes 1.83 times as long (median; 20 ms for 10 ms), and 1.5 times is allowed."
        )

    def test_to_be_asked_second_is_no_advantage(self) -> None:
        first, second = timing(0.02), timing(0.01)
        pairs = [
            Compared("r", first, second, 1.0, served_first=True),
            Compared("r", second, first, 1.0, served_first=False),
        ]

        assert tried(*pairs, *pairs, pairs[0]).slowdown == pytest.approx(1)

    def test_what_comes_after_the_decision_changes_nothing(self) -> None:
        trial = tried(*[answered()] * 10)

        trial.add(failed())
        trial.skip()

        assert (trial.requests, trial.failed, trial.skipped) == (10, 0, 0)

    def test_the_answers_that_agree_least_are_known_by_their_requests(self) -> None:
        trial = tried(*(answered(i, agreement=1 - i / 100) for i in range(10)))

        assert [request_id for request_id, _ in trial.worst] == ["r9", "r8", "r7", "r6", "r5"]

    def test_a_rule_that_allows_every_failure_promotes_what_fails(self) -> None:
        trial = tried(*map(failed, range(10)), rule=replace(RULE, errors=1.0, agreement=0.0))

        assert trial.decision is not None
        assert trial.decision.promoted

    @given(st.lists(st.floats(0, 1) | st.none(), min_size=10, max_size=10), st.floats(0, 1), st.floats(0, 1))
    def test_an_early_decision_is_the_one_that_the_end_would_have_brought(
        self, agreements: list[float | None], wanted: float, errors: float
    ) -> None:
        rule = PromotionPolicy(10, wanted, 1.5, errors)
        trial = tried(*(failed() if one is None else answered(agreement=one) for one in agreements), rule=rule)
        known = [one for one in agreements if one is not None]
        share, mean = (10 - len(known)) / 10, sum(known) / len(known) if known else 0.0

        assert trial.decision is not None
        if trial.decision.promoted:
            assert share <= errors + 1e-6
            assert mean >= wanted - 1e-6 or not known
        else:
            assert share > errors - 1e-6 or mean < wanted + 1e-6


def test_the_value_that_a_share_does_not_exceed_is_one_of_them() -> None:
    assert at_share([float(i) for i in range(1, 101)], 0.95) == 95
    assert at_share([3.0], 0.95) == 3
    assert at_share([], 0.95) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shadow", "credit=2"], "shadow: credit is 0 or more, and at most 1, not 2."),
        (["--shadow", "credit"], "shadow is NAME=NUMBER,NAME=NUMBER, each name once, not 'credit'."),
        (["--shadow", "all=0.1,all=0.2"], "shadow is NAME=NUMBER,NAME=NUMBER, each name once, not 'all=0.1,all=0.2'."),
        (["--shadow-requests", "0"], "shadow_requests is 1 or more, and at most 10000, not 0."),
        (["--shadow-agreement", "1.1"], "shadow_agreement is 0 or more, and at most 1, not 1.1."),
    ],
)
def test_a_wrong_setting_is_an_error_that_helps(flags: list[str], message: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        read_settings(flags, {})

    assert str(caught.value) == message


# Over real HTTP. Times are left out of the rule but where they are the point: tiny models take next to nothing.
LENIENT = {"shadow": {"all": 1.0}, "shadow_requests": 5, "shadow_slowdown": 1e6, "rescan_seconds": 0}


def credit(root: Path, version: int, *, labels: tuple[str, ...] = CREDIT.labels, graph: bytes | None = None) -> Path:
    return publish(root, "credit", replace(CREDIT, labels=labels), graph or credit_graph(), version=version)


def ask(server: Running, model: str = "credit", **sent: Any) -> Any:
    sent = sent or {"json": ROW}
    response = server.client.post(f"/v1/models/{model}/predict", **sent)
    assert response.status_code == 200, response.text
    return response


def report(server: Running, version: int = 2, model: str = "credit") -> Any:
    return server.client.get(f"/v1/models/{model}/versions/{version}/shadow").json()


def ask_until(server: Running, done: Callable[[], bool], **sent: Any) -> list[str]:
    """Asks until it is so; the versions that answered."""
    versions, deadline = [], time.monotonic() + 60
    while not done():
        versions.append(ask(server, **sent).headers["x-model"])
        assert time.monotonic() < deadline
    return versions


def decided(server: Running, version: int = 2) -> Callable[[], bool]:
    return lambda: report(server, version).get("verdict", "running") != "running"


def version_of(server: Running, version: int) -> dict[str, Any]:
    listed = server.client.get("/v1/models").json()["models"][0]["versions"]
    found: dict[str, Any] = next(each for each in listed if each["version"] == str(version))
    return found


def test_a_version_that_answers_alike_is_promoted_and_serves(tmp_path: Path, start: Start) -> None:
    credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT)
    credit(tmp_path, 2)
    server.service.repository.rescan()
    before, refused = version_of(server, 2), server.client.post("/v1/models/credit/versions/2/predict", json=ROW)

    versions = ask_until(server, decided(server))

    told = report(server)
    assert before["state"] == "shadow"
    assert refused.status_code == 503
    assert versions[0] == "credit/1"
    assert versions == sorted(versions)
    assert ask(server).json()["version"] == "2"
    assert (told["verdict"], told["requests"], told["errors"], told["agreement"]) == ("promoted", 5, 0, 1.0)
    assert told["shadow"]["work"]["p95"] >= told["shadow"]["work"]["median"] > 0
    assert version_of(server, 1)["reason"] == "A newer version is served."
    metrics = server.client.get("/metrics").text
    assert 'sevenfold_shadow_requests_total{model="credit",outcome="compared",version="2"} 5.0' in metrics
    assert 'sevenfold_shadow_decisions_total{decision="promoted",model="credit",version="2"} 1.0' in metrics
    assert f'sevenfold_requests_total{{model="credit",status="200"}} {len(versions) + 1}.0' in metrics


def test_a_version_that_answers_otherwise_is_rolled_back_and_not_tried_again_until_it_changes(
    tmp_path: Path, start: Start
) -> None:
    credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT)
    folder = credit(tmp_path, 2, labels=("refuses", "pays"))
    server.service.repository.rescan()

    ask_until(server, decided(server), json=ROW, headers={"x-request-id": "mine"})
    server.service.repository.rescan()

    told, listed = report(server), version_of(server, 2)
    assert told["verdict"] == "rolled_back"
    assert told["requests"] < 5
    assert told["worst"][0] == {"request_id": "mine", "agreement": 0.0}
    assert listed["state"] == "unavailable"
    assert "Its answers agree with those that were given by 0.000" in listed["reason"]
    assert ask(server).json()["version"] == "1"

    (folder / "README.md").touch()
    server.service.repository.rescan()

    assert version_of(server, 2)["state"] == "shadow"
    assert report(server)["requests"] == 0


def test_a_version_that_cannot_answer_what_clients_ask_is_rolled_back(tmp_path: Path, start: Start) -> None:
    credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT)
    renamed = replace(CREDIT, columns=(replace(CREDIT.columns[0], name="salary"), *CREDIT.columns[1:]))
    publish(tmp_path, "credit", renamed, credit_graph(), version=2)
    server.service.repository.rescan()

    ask_until(server, decided(server))

    told = report(server)
    assert (told["verdict"], told["requests"], told["errors"]) == ("rolled_back", 1, 1)
    assert told["failed"][0]["reason"].startswith("invalid_request: ")
    assert ask(server).json()["version"] == "1"


class Second:
    """The runtime, but that graphs that are marked run as `run` says once they have been proved."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.runtime = OnnxRuntime("cpu", threads=1)
        self.verify = False
        self._run = run

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Any:
        backend = self.runtime(graph, inputs, outputs)
        return _Behaving(backend, self) if graph == another(credit_graph()) else backend

    def before_run(self) -> None:
        # Never cheap, so that it has a thread of its own.
        self._run() if self.verify else time.sleep(0.003)


class _Behaving:
    def __init__(self, backend: Any, of: Second) -> None:
        self.device = backend.device
        self._backend = backend
        self._of = of

    def run(self, arrays: Arrays) -> Arrays:
        self._of.before_run()
        return dict(self._backend.run(arrays))

    def run_exclusive(self, arrays: Arrays) -> Arrays:
        return self.run(arrays)

    def release(self) -> None:
        self._backend.release()

    def memory_in_use(self) -> int | None:
        return None

    def memory_free(self) -> int | None:
        return None


def second_version(root: Path, start: Start, run: Callable[[], None], **settings: Any) -> Running:
    """A server with two versions, whose second, in the shadow, runs as `run` says."""
    credit(root, 1)
    runtime = Second(run)
    server = start(runtime, models=root, **LENIENT | settings)
    credit(root, 2, graph=another(credit_graph()))
    server.service.repository.rescan()
    runtime.verify = True
    return server


def test_a_version_that_is_slower_is_rolled_back(tmp_path: Path, start: Start) -> None:
    server = second_version(tmp_path, start, lambda: time.sleep(0.05), shadow_slowdown=1.5)

    ask_until(server, decided(server))

    assert report(server)["verdict"] == "rolled_back"
    assert "It takes " in report(server)["reason"]
    assert ask(server).json()["version"] == "1"


def test_a_version_that_raises_is_rolled_back_and_no_client_hears_of_it(tmp_path: Path, start: Start) -> None:
    def fail() -> None:
        raise ValueError("out of order")

    server = second_version(tmp_path, start, fail)

    versions = ask_until(server, decided(server))

    assert set(versions) == {"credit/1"}
    assert (report(server)["verdict"], report(server)["errors"]) == ("rolled_back", 1)
    assert server.client.get("/health/live").status_code == 200


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opened at the end, whatever happens: a thread that waits for it could not be ended."""
    event = threading.Event()
    yield event
    event.set()


def test_while_a_version_hangs_clients_are_answered_and_the_rest_is_skipped(
    tmp_path: Path, start: Start, gate: threading.Event
) -> None:
    server = second_version(tmp_path, start, lambda: gate.wait(60) and None, hang_seconds=0.3, batches_at_once=3)

    versions = ask_until(server, decided(server))
    gate.set()

    told = report(server)
    assert set(versions) == {"credit/1"}
    assert (told["verdict"], told["errors"]) == ("rolled_back", 1)
    assert told["failed"][0]["reason"].startswith("device_hung")


def test_what_is_under_way_is_bounded(tmp_path: Path, start: Start, gate: threading.Event) -> None:
    server = second_version(tmp_path, start, lambda: gate.wait(60) and None, hang_seconds=0, batches_at_once=3)

    for _ in range(30):
        ask(server)

    told = report(server)
    assert (told["verdict"], told["requests"]) == ("running", 0)
    assert told["skipped"] == 26
    gate.set()


def test_pictures_files_and_forms_are_mirrored_as_they_came(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "colours", COLOURS, colours_graph(), version=1)
    server = start(models=tmp_path, **LENIENT | {"shadow_requests": 9})
    publish(tmp_path, "colours", COLOURS, another(colours_graph()), version=2)
    server.service.repository.rescan()
    body = COLOURS.example()

    picture = base64.b64decode(body["image"])
    kinds = [
        {"json": body},
        {"content": picture, "headers": {"content-type": "image/jpeg"}, "params": {"heatmap": "true"}},
        {"files": {"image": ("x.jpg", picture)}, "data": {"top_k": "1", "priority": "high"}},
    ]

    deadline = time.monotonic() + 60
    while report(server, 2, "colours")["verdict"] == "running":
        for sent in kinds:
            ask(server, "colours", **sent)
        assert time.monotonic() < deadline

    told = report(server, 2, "colours")
    assert (told["verdict"], told["errors"], told["agreement"]) == ("promoted", 0, 1.0)


def test_at_the_start_the_newest_version_is_tried_beside_the_one_before_it(tmp_path: Path, start: Start) -> None:
    for version in (1, 2, 3):
        credit(tmp_path, version)

    server = start(models=tmp_path, **LENIENT)

    states = {version: version_of(server, version)["state"] for version in (1, 2, 3)}
    assert states == {1: "unavailable", 2: "ready", 3: "shadow"}
    assert ask(server).json()["version"] == "2"


def test_where_no_older_version_can_serve_the_newest_does_without_a_trial(tmp_path: Path, start: Start) -> None:
    broken = credit(tmp_path, 1)
    (broken / "model.onnx").write_bytes(b"not a graph")
    credit(tmp_path, 2)

    server = start(models=tmp_path, **LENIENT)

    assert ask(server).json()["version"] == "2"
    assert server.client.get("/v1/models/credit/versions/2/shadow").status_code == 404


def test_a_version_that_comes_during_a_trial_is_tried_instead_and_the_other_after_it(
    tmp_path: Path, start: Start
) -> None:
    credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT)
    credit(tmp_path, 2)
    server.service.repository.rescan()
    credit(tmp_path, 3, labels=("refuses", "pays"))
    server.service.repository.rescan()
    during = {version: version_of(server, version)["state"] for version in (1, 2, 3)}

    ask_until(server, decided(server, 3))
    server.service.repository.rescan()
    ask_until(server, decided(server, 2))

    assert during == {1: "ready", 2: "unavailable", 3: "shadow"}
    assert (report(server, 3)["verdict"], report(server, 2)["verdict"]) == ("rolled_back", "promoted")


def test_a_model_without_a_share_is_swapped_as_ever_and_has_no_report(tmp_path: Path, start: Start) -> None:
    credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT | {"shadow": {"all": 1.0, "credit": 0.0, "nobody": 0.5}})
    credit(tmp_path, 2)
    server.service.repository.rescan()

    refused = server.client.get("/v1/models/credit/versions/2/shadow")

    assert ask(server).json()["version"] == "2"
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    assert server.service.shadows.unknown() == ["nobody"]


def test_no_more_than_the_share_is_mirrored(tmp_path: Path, start: Start) -> None:
    credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT | {"shadow": {"credit": 1e-9}})
    credit(tmp_path, 2)
    server.service.repository.rescan()

    for _ in range(20):
        ask(server)

    told = report(server)
    assert (told["requests"], told["skipped"]) == (0, 0)
