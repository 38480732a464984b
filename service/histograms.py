"""Histograms for what is observed several times in each request, on the event loop.

prometheus_client's own take a lock and search linearly for each observation. With nine observations in each request
they cost a small model a fifth of its time; these cost a tenth of that.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from math import inf

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

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
    """A histogram with labels.

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
