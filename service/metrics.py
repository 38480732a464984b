"""What Prometheus sees: every metric of the service, in one place.

A registry of its own for each application, so that two of them in one process do not mix. Models that do not exist
share one label, so that nobody can make series up.
"""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

# Seconds: from a tiny model's row to a request that ran into its deadline.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
# Samples: powers of two, up to the largest batch anybody sets.
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

LiveGauge = tuple[str, str, list[str], Iterable[tuple[list[str], float]]]
"""A gauge as it is now: name, help, label names, and (labels, value) for each series."""

NO_MODEL = "none"
"""The label of requests that name no model there is."""


class Metrics:
    """The counters, gauges and histograms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_requests(self.registry)
        self._of_engine(self.registry)
        self._of_shadow(self.registry)

    def _of_requests(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "sevenfold_requests", "Requests answered, by status.", ["model", "status"], registry=registry
        )
        self.rejected = Counter(
            "sevenfold_rejected", "Requests refused, by error code.", ["model", "reason"], registry=registry
        )
        self.cancelled = Counter(
            "sevenfold_cancelled",
            "Requests whose client went away, by how far they had come: receive, decode, queue, infer, finish.",
            ["model", "stage"],
            registry=registry,
        )
        self.duration = Histogram(
            "sevenfold_request_duration_seconds",
            "From the head of a request to its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage = Histogram(
            "sevenfold_stage_duration_seconds",
            "Time of an answered request in each stage: receive, decode, queue, infer, postprocess.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )

    def _of_engine(self, registry: CollectorRegistry) -> None:
        self.dropped = Counter(
            "sevenfold_dropped_samples",
            "Samples given up before they were run: client gone or too late.",
            ["model"],
            registry=registry,
        )
        self.batch_size = Histogram(
            "sevenfold_batch_size", "Samples in a batch.", ["model"], buckets=_SIZES, registry=registry
        )
        self.batch_failures = Counter(
            "sevenfold_batch_failures", "Batches that the device failed.", ["model"], registry=registry
        )
        self.hung = Gauge("sevenfold_hung_runs", "Runs that have not come back in time.", ["place"], registry=registry)
        self.stray_errors = Counter(
            "sevenfold_stray_errors", "Errors in the event loop that belong to no request.", registry=registry
        )
        self.load_seconds = Gauge(
            "sevenfold_model_load_seconds", "Time to load and prove.", ["model", "version"], registry=registry
        )

    def _of_shadow(self, registry: CollectorRegistry) -> None:
        versions = ["model", "version"]
        self.shadow_requests = Counter(
            "sevenfold_shadow_requests",
            "Requests mirrored to a version in the shadow, by outcome: compared, failed, skipped.",
            [*versions, "outcome"],
            registry=registry,
        )
        self.shadow_agreement = Histogram(
            "sevenfold_shadow_agreement",
            "How far its answer agrees with the one that was given, 0 to 1.",
            versions,
            buckets=_SHARES,
            registry=registry,
        )
        self.shadow_seconds = Histogram(
            "sevenfold_shadow_seconds",
            "Time of a mirrored request without waiting, by who answered: served, shadow.",
            [*versions, "of"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.shadow_decisions = Counter(
            "sevenfold_shadow_decisions",
            "Versions in the shadow that were decided on: promoted, rolled_back.",
            [*versions, "decision"],
            registry=registry,
        )

    def watch(self, read: Callable[[], Iterable[LiveGauge]]) -> None:
        """Adds gauges that are read at each scrape."""
        self.registry.register(_Gauges(read))

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, read: Callable[[], Iterable[LiveGauge]]) -> None:
        self._read = read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for name, documentation, labels, series in self._read():
            family = GaugeMetricFamily(name, documentation, labels=labels)
            for values, value in series:
                family.add_metric(values, value)
            yield family
