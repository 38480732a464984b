"""The program sends spans to a collector by OTLP; one that is missing, slow or wrong holds up nothing."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.tracing.opentelemetry import OncePerInterval
from service.tracing.start import TracingUnavailable, is_requested, start_tracing
from tests.service.collector import Collector, collecting
from tests.service.program import ROOT, program

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
EXIT_TIMEOUT_S = 60


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@contextmanager
def traced_program(
    models: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with program(models) as (process, address, _):
        yield process, address


def ask(address: str) -> int:
    url = f"{address}/v1/models/credit/predict"
    return httpx.post(url, json=ROW, headers={"traceparent": TRACEPARENT}, timeout=60).status_code


def stop(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, object]]]:
    """Stop the program; return its exit status and its log."""
    process.terminate()
    _, logged = process.communicate(timeout=EXIT_TIMEOUT_S)
    assert all(line.startswith("{") for line in logged.splitlines()), logged
    return process.returncode, [json.loads(line) for line in logged.splitlines()]


def test_a_collector_receives_the_spans_and_the_log_has_their_trace(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    with traced_program(tiny_models, monkeypatch, collector.url) as (process, address):
        assert ask(address) == 200
        code, lines = stop(process)

    assert code == 0
    names = {"POST /v1/models/{name}/predict", "receive", "decode", "queue", "infer", "postprocess", "batch"}
    assert collector.spans().keys() == names
    assert {trace_id.hex() for ids in collector.spans().values() for trace_id in ids} == {TRACE_ID}
    resource = collector.exports[0].resource_spans[0].resource
    attributes = {attribute.key: attribute.value.string_value for attribute in resource.attributes}
    assert (attributes["service.name"], attributes["service.version"]) == ("sevenfold", "0.1.0")
    assert [line["trace_id"] for line in lines if line["logger"] == "service.request"] == [TRACE_ID]


def test_a_collector_that_is_not_there_holds_up_neither_requests_nor_the_exit(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced_program(tiny_models, monkeypatch, "http://127.0.0.1:1") as (process, address):
        assert {ask(address) for _ in range(20)} == {200}
        code, lines = stop(process)

    assert code == 0
    complaints = [line for line in lines if str(line["logger"]).startswith("opentelemetry")]
    assert len(complaints) <= 2, "one line a minute for each of the two loggers"


def test_a_collector_that_does_not_answer_holds_up_neither_requests_nor_the_exit(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    collector.is_free.clear()
    with traced_program(tiny_models, monkeypatch, collector.url) as (process, address):
        assert {ask(address) for _ in range(20)} == {200}
        code, _ = stop(process)

    assert code == 0


def test_missing_packages_are_an_error_at_start_that_says_what_to_install(tiny_models: Path) -> None:
    script = (
        "import sys; from importlib.machinery import PathFinder; find = PathFinder.find_spec\n"
        "PathFinder.find_spec = classmethod(\n"
        "    lambda cls, name, *rest: None if name.startswith('opentelemetry.exporter') else find(name, *rest))\n"
        "from service.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, "--models", str(tiny_models), "--port", "0"],
        cwd=ROOT,
        env={"PATH": "", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        capture_output=True,
        text=True,
        timeout=EXIT_TIMEOUT_S,
        check=False,
    )

    assert ended.returncode == 2
    assert "error: OTEL_EXPORTER_OTLP_ENDPOINT is set, but the packages for tracing are not installed." in ended.stderr
    assert "pip install" in ended.stderr


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_tracing_is_on_where_a_collector_is_named(environment: Mapping[str, str], expected: bool) -> None:
    assert is_requested(environment) is expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "must be a URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "not by 'grpc'"),
    ],
)
def test_what_cannot_work_is_an_error(environment: Mapping[str, str], message: str) -> None:
    with pytest.raises(TracingUnavailable, match=message):
        start_tracing("0.1.0", environment)


def test_the_log_of_failing_exports_is_limited_and_says_how_much_was_left_out() -> None:
    log_filter = OncePerInterval(60.0)

    def passes(created: float) -> object:
        record = logging.LogRecord("test", 30, "", 0, "failed", None, None)
        record.created = created
        return log_filter.filter(record) and getattr(record, "fields", {})

    assert [passes(at) for at in (1000.0, 1001.0, 1059.0, 1060.5, 1061.0)] == [{}, False, False, {"similar": 2}, False]
