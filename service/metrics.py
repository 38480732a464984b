"""All Prometheus metrics of the service.

Each application has its own registry, so that two applications in one process do not share counters. Requests for
models that do not exist share one label value, so that clients cannot create new series.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# From a table row through a tiny model (1 ms) to a request that reached its deadline (30 s).
_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_FRACTION_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
# Samples: powers of two, up to the largest batch size in use.
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

LiveGauge = tuple[str, str, list[str], Iterable[tuple[list[str], float]]]
"""The current state of a gauge: name, help text, label names, and (label values, value) of each series."""

NO_MODEL = "none"
"""The model label of requests that do not name an existing model."""


class Metrics:
    """The counters, gauges and histograms."""

    def __init__(self) -> None:
        # One more series for each counter and histogram, which Prometheus' text format has no use for. It is a switch
        # of the whole process.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._add_request_metrics(self.registry)
        self._add_engine_metrics(self.registry)
        self._add_shadow_metrics(self.registry)
        self.reload_failures = Counter(
            "sevenfold_reload_failures",
            "Changes of a file that could not be used, so that what it said before stays: api_keys, tls.",
            ["file"],
            registry=self.registry,
        )
        self._live_gauges: list[Callable[[], Iterable[LiveGauge]]] = []

    def _add_request_metrics(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "sevenfold_requests", "Requests answered, by status.", ["model", "status"], registry=registry
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
        self.duration = Histogram(
            "sevenfold_request_duration_seconds",
            "Time from receiving the request's headers to its response.",
            ["model"],
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self.stage = Histogram(
            "sevenfold_stage_duration_seconds",
            "Time that an answered request spent in each stage: receive, decode, queue, infer, postprocess.",
            ["model", "stage"],
            buckets=_SECONDS_BUCKETS,
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
        self.stray_errors = Counter(
            "sevenfold_stray_errors", "Unhandled errors in the event loop that belong to no request.", registry=registry
        )
        self.loop_lag = Histogram(
            "sevenfold_event_loop_lag_seconds",
            "How late the event loop runs what is due, measured 20 times a second.",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        self.load_seconds = Gauge(
            "sevenfold_model_load_seconds", "Time to load and verify a model.", ["model", "version"], registry=registry
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
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self.shadow_decisions = Counter(
            "sevenfold_shadow_decisions",
            "Decisions about shadow versions: promoted, rolled_back.",
            [*versions, "decision"],
            registry=registry,
        )

    def watch(self, read: Callable[[], Iterable[LiveGauge]]) -> None:
        """Add gauges whose values `read` returns at each scrape, on the event loop."""
        self._live_gauges.append(read)

    def count(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Add a counter that is kept elsewhere; `read` returns its value at each scrape."""
        self.registry.register(_ForeignCounter(name, documentation, read))

    def remove_version(self, name: str, version: str) -> None:
        """Remove the series of a version of a model that is gone."""
        for metric in (self.dropped, self.batch_size, self.batch_failures, self.load_seconds):
            with suppress(KeyError):  # It was never loaded.
                metric.remove(name, version)

    def prepare_exposition(self) -> Callable[[], bytes]:
        """Read the live gauges, and return a function that returns all metrics in Prometheus' text format.

        It takes some 10 ms, and may be called in any thread.
        """
        gauges = [gauge for read in self._live_gauges for gauge in read()]
        return lambda: generate_latest(_Snapshot(self.registry, gauges))


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
