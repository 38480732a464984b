"""Spans by OpenTelemetry, with the semantic conventions for HTTP servers.

    POST /v1/models/{name}/predict      SERVER; parent: the client's span (traceparent)
      receive · decode · queue · infer · postprocess
      batch                             child of the first recorded request that it ran, linked to all of them

The stages are laid out one after the other, by the durations in `Server-Timing`: time in which a request waited to be
decoded is part of `queue`, and shown after `decode`. `infer` is linked to the batches of the request.

Spans are sent by a thread of the SDK, from a queue of bounded length: what does not fit is dropped.
"""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.tracing.spans import BatchOutcome, RequestOutcome, RequestSpan

_FLUSH_S = 1.5
"""How long an exit waits for the last spans to be sent."""
_MAX_LINKS = 1_024
"""Links of a batch: more than the requests of any batch. The SDK's default would drop those after 128."""
_NOISY_LOGGERS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")
_LOG_INTERVAL_S = 60.0
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"))
_MAX_PATH = 200
_SERVER_ERROR = 500
_PROPAGATOR = TraceContextTextMapPropagator()
_PROPAGATED = (b"traceparent", b"tracestate")


class OpenTelemetrySpan:
    """A request: its span, and the batches that it was part of."""

    def __init__(self, span: Span, started_at: float) -> None:
        self.span = span
        self.batches: list[SpanContext] = []
        self.epoch_ns = _epoch_ns()
        self.started_at = started_at

    @property
    def trace_id(self) -> str:
        """The id of its trace: 32 hexadecimal digits."""
        return trace.format_trace_id(self.span.get_span_context().trace_id)

    @property
    def traceresponse(self) -> str:
        """The span that answers the request, in the format of `traceparent` (Trace Context level 2, a draft)."""
        context = self.span.get_span_context()
        return f"00-{self.trace_id}-{trace.format_span_id(context.span_id)}-{context.trace_flags & 1:02x}"

    @property
    def is_recorded(self) -> bool:
        """Whether the sampler has chosen it."""
        return self.span.is_recording()

    def at(self, perf_counter: float) -> int:
        """Return a time of `time.perf_counter` as nanoseconds since 1970."""
        return self.epoch_ns + int(perf_counter * 1e9)


class OpenTelemetryTracer:
    """Records spans, and hands them to a processor.

    Args:
        processor: receives the spans; by default of the SDK, it sends them from a thread.
        service_version: the version of the program.
        sampler: decides which requests are recorded; by default, the SDK reads OTEL_TRACES_SAMPLER.
        environment: the variables of the OpenTelemetry specification.
    """

    def __init__(
        self,
        processor: SpanProcessor,
        service_version: str,
        *,
        sampler: Sampler | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        environment = environment or {}
        limits = SpanLimits(max_links=None if "OTEL_SPAN_LINK_COUNT_LIMIT" in environment else _MAX_LINKS)
        self._provider = TracerProvider(
            sampler=sampler,
            resource=_resource(service_version, environment),
            shutdown_on_exit=False,  # It would wait for an unreachable collector.
            span_limits=limits,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sevenfold", service_version)

    def start_request(self, headers: Iterable[tuple[bytes, bytes]], method: str) -> OpenTelemetrySpan:
        """Start the span of a request. A malformed `traceparent` is ignored."""
        carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in _PROPAGATED}
        context = _PROPAGATOR.extract(carrier) if carrier else None
        name = method if method in _METHODS else "HTTP"
        return OpenTelemetrySpan(
            self._tracer.start_span(name, context, kind=SpanKind.SERVER), started_at=time.perf_counter()
        )

    def end_request(self, span: RequestSpan, outcome: RequestOutcome) -> None:
        """Record a request and its stages; requests that are not recorded need not be ended."""
        if not isinstance(span, OpenTelemetrySpan) or not span.is_recorded:
            return
        method = outcome.method if outcome.method in _METHODS else "HTTP"
        server_span = span.span
        server_span.update_name(f"{method} {outcome.route}".rstrip())
        server_span.set_attributes(_attributes_of(outcome))
        if outcome.status >= _SERVER_ERROR or not outcome.status:
            if outcome.error is not None:
                server_span.record_exception(outcome.error)
            server_span.set_status(Status(StatusCode.ERROR, outcome.code))
        self._record_stages(span, outcome)
        server_span.end(span.at(outcome.ended_at))

    def _record_stages(self, span: OpenTelemetrySpan, outcome: RequestOutcome) -> None:
        context = trace.set_span_in_context(span.span)
        begin = outcome.started_at
        for stage, seconds in outcome.stages.items():
            links = [Link(batch) for batch in span.batches] if stage == "infer" else ()
            child = self._tracer.start_span(stage, context, links=links, start_time=span.at(begin))
            begin += seconds
            child.end(span.at(begin))

    def record_batch(self, batch: BatchOutcome) -> None:
        """Record a batch in the trace of its first request, linked to the spans of all."""
        requests = [request for request in batch.requests if isinstance(request, OpenTelemetrySpan)]
        if not requests:
            return
        contexts = [request.span.get_span_context() for request in requests]
        epoch_ns = _epoch_ns()
        span = self._tracer.start_span(
            "batch",
            trace.set_span_in_context(NonRecordingSpan(contexts[0])),
            links=[Link(context) for context in contexts],
            attributes={
                "sevenfold.model": batch.model,
                "sevenfold.version": batch.version,
                "sevenfold.device": batch.device,
                "sevenfold.batch_size": batch.size,
            },
            start_time=epoch_ns + int(batch.started_at * 1e9),
        )
        if batch.error is not None:
            span.record_exception(batch.error)
            span.set_status(Status(StatusCode.ERROR, type(batch.error).__name__))
        span.end(epoch_ns + int(batch.ended_at * 1e9))
        for request in requests:
            request.batches.append(span.get_span_context())

    def close(self) -> None:
        """Send the last spans; what an unreachable collector does not take in time is lost."""
        thread = threading.Thread(target=self._provider.shutdown, name="tracing-shutdown", daemon=True)
        thread.start()
        thread.join(_FLUSH_S)


def start_exporting(service_version: str, environment: Mapping[str, str]) -> OpenTelemetryTracer:
    """Return a tracer that sends spans to the collector named by the environment of this process."""
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).addFilter(OncePerInterval(_LOG_INTERVAL_S))
    return OpenTelemetryTracer(BatchSpanProcessor(OTLPSpanExporter()), service_version, environment=environment)


class OncePerInterval(logging.Filter):
    """Lets a logger through once per interval, and says how many of its records were left out before.

    A collector that cannot be reached is reported several times a second otherwise.
    """

    def __init__(self, interval_s: float) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._next_at = 0.0
        self._skipped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is logged."""
        if record.created < self._next_at:
            self._skipped += 1
            return False
        self._next_at = record.created + self._interval_s
        if self._skipped:
            record.fields = {"similar": self._skipped}
        self._skipped = 0
        return True


def _epoch_ns() -> int:
    """Return the time, in nanoseconds since 1970, at which `time.perf_counter` was 0."""
    return time.time_ns() - time.perf_counter_ns()


def _resource(service_version: str, environment: Mapping[str, str]) -> Resource:
    attributes = {"service.version": service_version}
    # What is passed takes precedence over the environment.
    if "OTEL_SERVICE_NAME" not in environment and "service.name=" not in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        attributes["service.name"] = "sevenfold"
    return Resource.create(attributes)


def _attributes_of(outcome: RequestOutcome) -> dict[str, Any]:
    """Return the attributes of a request (OpenTelemetry semantic conventions, HTTP server spans)."""
    attributes: dict[str, Any] = {
        "http.request.method": outcome.method if outcome.method in _METHODS else "_OTHER",
        "url.path": outcome.path[:_MAX_PATH],
        "url.scheme": outcome.scheme,
        "http.response.status_code": outcome.status,
        "sevenfold.request_id": outcome.request_id,
        "sevenfold.model": outcome.model,
        "sevenfold.version": outcome.version,
    }
    if outcome.route:
        attributes["http.route"] = outcome.route
    if outcome.batch_size:
        attributes["sevenfold.batch_size"] = outcome.batch_size
    if outcome.code:
        attributes["error.type"] = outcome.code
    if outcome.failed_inputs:
        attributes["sevenfold.failed_inputs"] = outcome.failed_inputs
    return attributes
