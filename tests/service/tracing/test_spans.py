"""Requests and batches become spans, in the client's trace, without any effect on the answers."""

import re

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from service.tracing.opentelemetry import OpenTelemetryTracer
from tests.service.conftest import Running, Start
from tests.service.http.conftest import FAILS, URL, StartBlocked
from tests.waiting import wait_until

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-01", f"00-{TRACE_ID}-{PARENT_ID}-00"
STAGES = ["receive", "decode", "queue", "infer", "postprocess"]


class Spans:
    """A tracer, and the spans that it has recorded."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer = OpenTelemetryTracer(SimpleSpanProcessor(self.exporter), "0.1.0", sampler=sampler)

    def named(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """Wait until `count` spans have this name, and return them."""
        wait_until(lambda: len(self._find(name)) >= count)
        return self._find(name)

    def _find(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


PREDICT = "POST /v1/models/{name}/predict"


def trace_id_of(span: ReadableSpan) -> str:
    return f"{span.get_span_context().trace_id:032x}"


def ask(server: Running, **headers: str) -> httpx.Response:
    return server.client.post(URL, json=ROW, headers=headers)


def test_a_request_continues_the_trace_of_its_client(start: Start) -> None:
    spans = Spans()
    server = start(tracer=spans.tracer)

    response = ask(server, traceparent=SAMPLED, tracestate="vendor=value")

    (span,) = spans.named(PREDICT)
    assert span.kind is SpanKind.SERVER
    assert trace_id_of(span) == TRACE_ID
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.get_span_context().trace_state.get("vendor") == "value"
    assert response.headers["traceresponse"] == f"00-{TRACE_ID}-{span.get_span_context().span_id:016x}-01"
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{name}/predict",
        "http.response.status_code": 200,
        "url.path": URL,
        "url.scheme": "http",
        "sevenfold.model": "credit",
        "sevenfold.version": "1",
        "sevenfold.batch_size": 1,
        "sevenfold.request_id": response.headers["x-request-id"],
    }
    assert dict(span.resource.attributes)["service.name"] == "sevenfold"


@pytest.mark.parametrize(
    "traceparent",
    ["", "nonsense", f"00-{TRACE_ID}-{PARENT_ID}", f"00-{'0' * 32}-{PARENT_ID}-01", f"ff-{TRACE_ID}-{PARENT_ID}-01"],
)
def test_a_malformed_traceparent_is_ignored(start: Start, traceparent: str) -> None:
    spans = Spans()
    server = start(tracer=spans.tracer)

    response = ask(server, traceparent=traceparent)

    (span,) = spans.named(PREDICT)
    assert response.status_code == 200
    assert span.parent is None
    assert re.fullmatch(f"00-{trace_id_of(span)}-[0-9a-f]{{16}}-01", response.headers["traceresponse"])


def test_the_stages_are_children_that_follow_one_another_within_the_request(start: Start) -> None:
    spans = Spans()
    server = start(tracer=spans.tracer)

    ask(server)

    (request,) = spans.named(PREDICT)
    stages = [spans.named(stage)[0] for stage in STAGES]
    assert {stage.parent.span_id for stage in stages if stage.parent} == {request.get_span_context().span_id}
    times = [(stage.start_time or 0, stage.end_time or 0) for stage in stages]
    assert times == sorted(times)
    margin_ns = 1_000_000  # The request starts by another reading of the clock than its stages.
    assert (request.start_time or 0) - margin_ns <= times[0][0]
    assert times[-1][1] <= (request.end_time or 0) + margin_ns


def test_a_batch_is_one_span_that_is_linked_to_its_requests_and_they_to_it(start_blocked: StartBlocked) -> None:
    spans = Spans()
    server = start_blocked(tracer=spans.tracer)
    answers = [server.occupy_device(), *(server.submit(income) for income in (10.0, 20.0, 30.0))]
    server.wait_for_queue(3)

    server.unblock()

    assert {answer.result().status_code for answer in answers} == {200}
    requests = {request.get_span_context().span_id for request in spans.named(PREDICT, 4)}
    batches = {(batch.attributes or {})["sevenfold.batch_size"]: batch for batch in spans.named("batch", 2)}
    assert sorted(batches) == [1, 3]
    linked = {link.context.span_id for link in batches[3].links}
    assert len(linked) == 3
    assert linked < requests
    assert batches[3].parent is not None
    assert batches[3].parent.span_id in linked
    batch_id = batches[3].get_span_context().span_id
    infers = [infer for infer in spans.named("infer", 4) if batch_id in [link.context.span_id for link in infer.links]]
    assert {infer.parent.span_id for infer in infers if infer.parent} == linked


def test_errors_are_recorded_and_those_of_clients_do_not_count_as_such(start_blocked: StartBlocked) -> None:
    spans = Spans()
    server = start_blocked(tracer=spans.tracer)
    server.unblock()

    assert server.ask(FAILS).status_code == 500
    assert server.running.client.post(URL, json={"rows": []}).status_code == 422

    failed, invalid = sorted(spans.named(PREDICT, 2), key=lambda span: span.status.status_code is StatusCode.UNSET)
    assert failed.status.status_code is StatusCode.ERROR
    assert (failed.attributes or {})["error.type"] == failed.status.description == "backend_failed"
    assert "The graph failed." in str((failed.events[0].attributes or {})["exception.message"])
    assert invalid.status.status_code is StatusCode.UNSET
    assert (invalid.attributes or {})["error.type"] == "invalid_request"
    (batch,) = spans.named("batch")
    assert batch.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("path", ["/health/ready", "/health/load", "/metrics"])
def test_probes_are_not_traced(start: Start, path: str) -> None:
    spans = Spans()
    server = start(tracer=spans.tracer)

    probe = server.client.get(path)
    server.client.get("/v1/models/credit")

    spans.named("GET /v1/models/{name}")
    assert "traceresponse" not in probe.headers
    assert [span.name for span in spans.exporter.get_finished_spans()] == ["GET /v1/models/{name}"]


@pytest.mark.parametrize(
    ("sampler", "traceparent", "flags"),
    [
        (ParentBased(ALWAYS_ON), NOT_SAMPLED, "00"),
        (ParentBased(ALWAYS_OFF), SAMPLED, "01"),
        (ParentBased(TraceIdRatioBased(0.0)), "", "00"),
    ],
)
def test_the_client_s_decision_is_followed_and_otherwise_the_sampler_s(
    start: Start, sampler: Sampler, traceparent: str, flags: str
) -> None:
    spans = Spans(sampler)
    server = start(tracer=spans.tracer)

    response = ask(server, **({"traceparent": traceparent} if traceparent else {}))

    assert response.headers["traceresponse"].endswith(f"-{flags}")
    assert bool(spans.exporter.get_finished_spans()) == (flags == "01") or spans.named(PREDICT)


def test_the_duration_has_an_exemplar_that_names_the_trace(start: Start) -> None:
    server = start(tracer=Spans().tracer)
    ask(server, traceparent=SAMPLED)

    def exemplars() -> list[str]:
        text = server.client.get("/metrics", headers={"accept": "application/openmetrics-text"}).text
        return [line for line in text.splitlines() if f'# {{trace_id="{TRACE_ID}"}}' in line]

    wait_until(lambda: bool(exemplars()))
    assert all(line.startswith('sevenfold_request_duration_seconds_bucket{le="') for line in exemplars())
    assert "trace_id" not in server.client.get("/metrics").text


def test_without_tracing_there_is_no_header(server: Running) -> None:
    assert "traceresponse" not in ask(server, traceparent=SAMPLED).headers
