"""All Prometheus metrics of the service.

Each application has its own registry, so that two applications in one process do not share counters. Requests for
models that do not exist share one label value, so that clients cannot create new series. docs/metrics.md lists all
metrics; a test compares it with what is exposed here.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from threading import Lock

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

DEFAULT_OBJECTIVE_S = 0.25
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of Prometheus' own text format."""
OPENMETRICS = CONTENT_TYPE_LATEST
"""The media type of OpenMetrics, whose histograms can have exemplars."""
_OPENMETRICS_TYPE = "application/openmetrics-text"
# From a table row through a tiny model (1 ms) to a request that reached its deadline (30 s).
_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_FRACTION_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_PADDING_BUCKETS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# Samples: powers of two, up to the largest batch size in use.
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# From a table row to the largest body that is accepted by default.
_BYTES_BUCKETS = (256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216, 67_108_864)

LiveGauge = tuple[str, str, list[str], Iterable[tuple[list[str], float]]]
"""The current state of a gauge: name, help text, label names, and (label values, value) of each series."""

NO_MODEL = "none"
"""The model label of requests that do not name an existing model; also their version label."""
_MAX_GONE = 1_000
"""Removed versions that are remembered for requests in flight."""


def choose_exposition(accept: str) -> str:
    """Return the media type of the metrics for an `Accept` header: OpenMetrics if it is asked for."""
    types = (item.partition(";")[0].strip().lower() for item in accept.split(","))
    return OPENMETRICS if _OPENMETRICS_TYPE in types else PROMETHEUS_TEXT


def generator_for(media_type: str) -> Callable[[Collector], bytes]:
    """Return the function that writes metrics in the format of a media type."""
    return generate_openmetrics if media_type == OPENMETRICS else generate_latest


_Bucket = tuple[str, float] | tuple[str, float, Exemplar]


class Series:
    """The observations of one combination of label values. `observe` is for one thread only."""

    __slots__ = ("_counts", "_edges", "_exemplars", "_sum")

    def __init__(self, edges: Sequence[float]) -> None:
        """`edges` are the upper edges of the buckets, ascending; the last one is infinite."""
        self._edges = edges
        self._counts = [0] * len(edges)
        self._sum = 0.0
        self._exemplars: dict[int, Exemplar] = {}

    def observe(self, value: float, exemplar: Mapping[str, str] | None = None) -> None:
        """Count a value, with the labels of an example (OpenMetrics, Exemplars) for its bucket."""
        bucket = bisect_left(self._edges, value)  # A value on an edge belongs below it.
        self._counts[bucket] += 1
        self._sum += value
        if exemplar is not None:
            self._exemplars[bucket] = Exemplar(dict(exemplar), value, time.time())

    def read(self) -> tuple[list[_Bucket], float]:
        """Return the cumulative buckets, each as upper edge, count and exemplar if any, and the sum. For any thread."""
        counts, total = self._counts.copy(), 0.0
        buckets: list[_Bucket] = []
        for i, (edge, count) in enumerate(zip(self._edges, counts, strict=True)):
            total += count
            name = str(floatToGoString(edge))  # type: ignore[no-untyped-call]
            exemplar = self._exemplars.get(i)
            buckets.append((name, total) if exemplar is None else (name, total, exemplar))
        return buckets, self._sum


class LoopHistogram(Collector):
    """A histogram with labels for what is observed several times in each request, on the event loop.

    prometheus_client's own takes a lock and searches linearly for each observation. Nine observations in each request
    cost a small model a tenth of its time that way.

    Args:
        name: of the metric.
        documentation: its help text.
        labels: their names.
        buckets: the upper edges, ascending, without infinity.
        registry: the registry that exposes it.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._documentation, self._labels = name, documentation, tuple(labels)
        self._edges = (*map(float, buckets), inf)
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: str) -> Series:
        """Return the series with these label values."""
        series = self._series.get(values)
        if series is None:
            if len(values) != len(self._labels):
                raise ValueError(f"{self._name} has the labels {', '.join(self._labels)}, not {len(values)} of them.")
            series = self._series.setdefault(values, Series(self._edges))
        return series

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Return the metric without series; the registry looks for names that are taken."""
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return the metric with all its series."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, series in list(self._series.items()):
            buckets, total = series.read()
            family.add_metric(values, buckets, total)
        yield family


class Metrics:
    """The counters, gauges and histograms.

    Args:
        objective_s: the latency objective, which becomes an exact edge of the histograms of durations, so that the
            fraction of requests within it can be read off without interpolation.
    """

    def __init__(self, objective_s: float = DEFAULT_OBJECTIVE_S) -> None:
        # One more series for each counter and histogram, which Prometheus' text format has no use for. It is a switch
        # of the whole process.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._seconds_buckets = sorted({*_SECONDS_BUCKETS, objective_s})
        self._add_request_metrics(self.registry)
        self._add_body_metrics(self.registry)
        self._add_engine_metrics(self.registry)
        self._add_model_metrics(self.registry)
        self._add_process_metrics(self.registry)
        self._add_shadow_metrics(self.registry)
        self.reload_failures = Counter(
            "sevenfold_reload_failures",
            "Changes of a file that could not be used, so that what it said before stays: api_keys, tls.",
            ["file"],
            registry=self.registry,
        )
        Gauge("sevenfold_objective_seconds", "The latency objective.", registry=self.registry).set(objective_s)
        ProcessCollector(registry=self.registry)
        self._live_gauges: list[Callable[[], Iterable[LiveGauge]]] = []
        self._slow_gauges: list[Callable[[], Iterable[LiveGauge]]] = []
        self._lock = Lock()
        """Held while versions come and go."""
        self._count_by_version: dict[tuple[str, str, int], Counter] = {}
        self._gone: dict[tuple[str, str], None] = {}

    def _add_request_metrics(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "sevenfold_requests", "Requests answered, by status.", ["model", "version", "status"], registry=registry
        )
        self.rejected = Counter(
            "sevenfold_rejected",
            "Requests that got an error other than 500, and inputs of lists that got any error, by error code.",
            ["model", "reason"],
            registry=registry,
        )
        self.cancelled = Counter(
            "sevenfold_cancelled",
            "Requests whose client disconnected, by the stage reached: receive, decode, queue, infer, finish.",
            ["model", "stage"],
            registry=registry,
        )
        self.duration = LoopHistogram(
            "sevenfold_request_duration_seconds",
            "Time from receiving the request's headers to its response.",
            ["model"],
            buckets=self._seconds_buckets,
            registry=registry,
        )
        self.stage = LoopHistogram(
            "sevenfold_stage_duration_seconds",
            "Time that an answered request spent in each stage: receive, decode, queue, infer, postprocess.",
            ["model", "stage"],
            buckets=self._seconds_buckets,
            registry=registry,
        )

    def _add_body_metrics(self, registry: CollectorRegistry) -> None:
        self.request_bytes = LoopHistogram(
            "sevenfold_request_body_bytes",
            "Size of the request bodies that were received whole.",
            ["model"],
            buckets=_BYTES_BUCKETS,
            registry=registry,
        )
        self.response_bytes = LoopHistogram(
            "sevenfold_response_body_bytes",
            "Size of the bodies of answers.",
            ["model"],
            buckets=_BYTES_BUCKETS,
            registry=registry,
        )

    def _add_engine_metrics(self, registry: CollectorRegistry) -> None:
        versions = ["model", "version"]
        self.dropped = Counter(
            "sevenfold_dropped_samples",
            "Samples dropped before they were run: client disconnected or deadline passed.",
            versions,
            registry=registry,
        )
        self.batch_size = Histogram(
            "sevenfold_batch_size", "Samples per batch.", versions, buckets=_SIZE_BUCKETS, registry=registry
        )
        self.batch_padding = Histogram(
            "sevenfold_batch_padding_ratio",
            "Share of a batch's input of variable length (tokens, histories) that is padding; 0 for other models.",
            versions,
            buckets=_PADDING_BUCKETS,
            registry=registry,
        )
        self.batch_failures = Counter(
            "sevenfold_batch_failures", "Batches that failed on the device.", versions, registry=registry
        )
        self.hung = Gauge(
            "sevenfold_hung_runs",
            "Runs that exceeded the hang limit and have not returned.",
            ["place"],
            registry=registry,
        )
        self.decoders_killed = Counter(
            "sevenfold_decoders_killed",
            "Worker processes that ended within a request: retried (it was decoded again, with a larger budget), "
            "budget, stalled, killed, crashed.",
            ["reason"],
            registry=registry,
        )

    def _add_model_metrics(self, registry: CollectorRegistry) -> None:
        self.load_seconds = Gauge(
            "sevenfold_model_load_seconds", "Time to load and verify a model.", ["model", "version"], registry=registry
        )
        self.load_failures = Counter(
            "sevenfold_model_load_failures",
            "Versions that were found broken, or failed to load or to reproduce their golden answers.",
            ["model"],
            registry=registry,
        )

    def _add_process_metrics(self, registry: CollectorRegistry) -> None:
        self.build_info = Gauge(
            "sevenfold_build_info",
            "1, with the versions of the program, of Python and of ONNX Runtime.",
            ["version", "python", "onnxruntime"],
            registry=registry,
        )
        Gauge("sevenfold_processes", "Server processes that are running.", registry=registry).set(1)
        Counter(
            "sevenfold_process_restarts",
            "Server processes that have ended and were replaced; the server itself went on.",
            registry=registry,
        )
        self.stray_errors = Counter(
            "sevenfold_stray_errors", "Unhandled errors in the event loop that belong to no request.", registry=registry
        )
        self.loop_lag = Histogram(
            "sevenfold_event_loop_lag_seconds",
            "How late the event loop runs what is due, measured 20 times a second.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )

    def _add_shadow_metrics(self, registry: CollectorRegistry) -> None:
        versions = ["model", "version"]
        self.shadow_requests = Counter(
            "sevenfold_shadow_requests",
            "Requests mirrored to a shadow version, by outcome: compared, failed, skipped.",
            [*versions, "outcome"],
            registry=registry,
        )
        self.shadow_agreement = Histogram(
            "sevenfold_shadow_agreement",
            "Agreement of the shadow version's answer with the answer that the client got, 0 to 1.",
            versions,
            buckets=_FRACTION_BUCKETS,
            registry=registry,
        )
        self.shadow_seconds = Histogram(
            "sevenfold_shadow_seconds",
            "Processing time of a mirrored request without queueing, by version: served, shadow.",
            [*versions, "of"],
            buckets=self._seconds_buckets,
            registry=registry,
        )
        self.shadow_decisions = Counter(
            "sevenfold_shadow_decisions",
            "Decisions about shadow versions: promoted, rolled_back.",
            [*versions, "decision"],
            registry=registry,
        )

    def request_counter(self, model: str, version: str, status: int) -> Counter:
        """Return the counter of requests that ended in this way."""
        key = (model, version, status)
        counter = self._count_by_version.get(key)
        if counter is None:
            with self._lock:
                if (model, version) in self._gone:  # The version was removed while the request was in flight.
                    version = NO_MODEL
                counter = self._count_by_version[key] = self.requests.labels(model, version, str(status))
        return counter

    def watch(self, read: Callable[[], Iterable[LiveGauge]]) -> None:
        """Add gauges whose values `read` returns at each scrape, on the event loop. It must not block."""
        self._live_gauges.append(read)

    def watch_in_thread(self, read: Callable[[], Iterable[LiveGauge]]) -> None:
        """Add gauges whose values `read` returns at each scrape, in the thread that writes the exposition."""
        self._slow_gauges.append(read)

    def count(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Add a counter that is kept elsewhere; `read` returns its value at each scrape."""
        self.registry.register(_ForeignCounter(name, documentation, read))

    def add_version(self, name: str, version: str) -> None:
        """Count the requests of a version by its number from now on."""
        with self._lock:
            self._gone.pop((name, version), None)
            self._forget_counters(name, version)

    def remove_version(self, name: str, version: str) -> None:
        """Remove the series of a version of a model that is gone, and count its last requests without its number.

        May be called in any thread.
        """
        with self._lock:
            self._gone[name, version] = None
            if len(self._gone) > _MAX_GONE:
                del self._gone[next(iter(self._gone))]
            self._forget_counters(name, version)
            for metric in self._metrics_by_version():
                metric.remove_by_labels({"model": name, "version": version})

    def _forget_counters(self, name: str, version: str) -> None:
        for key in [key for key in list(self._count_by_version) if key[:2] == (name, version)]:
            self._count_by_version.pop(key, None)

    def _metrics_by_version(self) -> tuple[MetricWrapperBase, ...]:
        return (
            self.requests,
            self.dropped,
            self.batch_size,
            self.batch_padding,
            self.batch_failures,
            self.load_seconds,
            self.shadow_requests,
            self.shadow_agreement,
            self.shadow_seconds,
            self.shadow_decisions,
        )

    def prepare_exposition(self, media_type: str = PROMETHEUS_TEXT) -> Callable[[], bytes]:
        """Read the live gauges, and return a function that returns all metrics in the format of the media type.

        It takes some 10 ms, and may be called in any thread.
        """
        prepare, generate = self._prepare_snapshot(), generator_for(media_type)
        return lambda: generate(prepare())

    def prepare_families(self) -> Callable[[], list[Metric]]:
        """Read the live gauges, and return a function that returns all metrics; it may be called in any thread."""
        prepare = self._prepare_snapshot()
        return lambda: list(prepare().collect())

    def _prepare_snapshot(self) -> "Callable[[], _Snapshot]":
        gauges = [gauge for read in self._live_gauges for gauge in read()]
        return lambda: _Snapshot(self.registry, [*gauges, *self._read_slow_gauges()])

    def _read_slow_gauges(self) -> Iterable[LiveGauge]:
        for read in self._slow_gauges:
            yield from read()


@dataclass(frozen=True)
class _Snapshot(Collector):
    """All metrics of a registry, and gauges that have been read."""

    registry: CollectorRegistry
    gauges: Sequence[LiveGauge]

    def collect(self) -> Iterable[Metric]:
        yield from self.registry.collect()
        for name, documentation, labels, series in self.gauges:
            family = GaugeMetricFamily(name, documentation, labels=labels)
            for values, value in series:
                family.add_metric(values, value)
            yield family


class _ForeignCounter(Collector):
    def __init__(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        self._family = (name, documentation)
        self._read = read

    def collect(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(*self._family, value=self._read())
