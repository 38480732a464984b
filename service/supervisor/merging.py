"""Merge the metrics of several processes into those of one server.

Counters and histograms are summed; what a process had counted before it ended stays in the sums, so that they never go
down. How a gauge is merged depends on its meaning, and is listed here for each one; a test compares the list with what
a server exposes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from service.metrics import NO_MODEL

Families = list[dict[str, Any]]
"""Metrics as JSON: `name`, `help`, `type`, and `samples` as [name, labels, value, exemplar or null]."""
_Key = tuple[str, tuple[tuple[str, str], ...]]

_GAUGES: Mapping[str, Callable[[Iterable[float]], float]] = {
    "process_max_fds": sum,
    "process_open_fds": sum,
    "process_resident_memory_bytes": sum,
    "process_start_time_seconds": max,  # So that the start of a new process is a change.
    "process_virtual_memory_bytes": sum,
    "sevenfold_api_keys": min,
    "sevenfold_batch_limit": max,
    "sevenfold_body_bytes": sum,
    "sevenfold_build_info": max,
    "sevenfold_device_info": max,
    "sevenfold_device_memory_total_bytes": max,
    "sevenfold_device_memory_used_bytes": sum,  # Of a process, on the CPU; several processes never share a GPU.
    "sevenfold_hung_runs": sum,
    "sevenfold_model_info": max,
    "sevenfold_model_load_seconds": max,
    "sevenfold_model_ready": min,  # Served means: by every process.
    "sevenfold_objective_seconds": max,
    "sevenfold_processes": sum,
    "sevenfold_queue_depth": sum,
    "sevenfold_queue_oldest_age_seconds": max,
    "sevenfold_requests_in_flight": sum,
    "sevenfold_requests_limit": sum,
    "sevenfold_tls_certificate_expiry_timestamp_seconds": min,
}
"""How the values of a gauge become one."""
_CUMULATIVE = ("counter", "histogram")
_READY = "sevenfold_model_ready"


def gauge_names() -> frozenset[str]:
    """Return the gauges for which it is known how they are merged."""
    return frozenset(_GAUGES)


def to_json(metrics: Iterable[Metric]) -> Families:
    """Return metrics as JSON."""
    return [
        {
            "name": metric.name,
            "help": metric.documentation,
            "type": metric.type,
            "samples": [[s.name, s.labels, s.value, s.exemplar and list(s.exemplar)] for s in metric.samples],
        }
        for metric in metrics
    ]


@dataclass(frozen=True)
class MergedMetrics(Collector):
    """Merged metrics, as the functions that write an exposition expect them."""

    families: Families

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics."""
        for family in self.families:
            metric = Metric(family["name"], family["help"], family["type"])
            metric.samples = [
                Sample(name, labels, value, None, exemplar and Exemplar(*exemplar))
                for name, labels, value, exemplar in family["samples"]
            ]
            yield metric


def merge(processes: Sequence[Families], ended: Families | None = None) -> Families:
    """Return the metrics of a server.

    Args:
        processes: the metrics of each process that is running.
        ended: what processes had counted that have ended (`cumulative`). Series of a version that is in no folder any
            more are left out, as a process removes its own.
    """
    merged: dict[str, dict[str, Any]] = {}
    for families in [*processes, _without_removed(ended or [], processes)]:
        for family in families:
            known = merged.setdefault(family["name"], {**family, "samples": {}})
            _add(known["samples"], family)
    return [{**family, "samples": list(family["samples"].values())} for family in merged.values()]


def cumulative(families: Families) -> Families:
    """Return what remains of the metrics of a process when it has ended: counters and histograms."""
    return [family for family in families if family["type"] in _CUMULATIVE]


def _add(samples: dict[_Key, list[Any]], family: Mapping[str, Any]) -> None:
    combine = sum if family["type"] in _CUMULATIVE else _GAUGES.get(family["name"], sum)
    for name, labels, value, exemplar in family["samples"]:
        key = (name, tuple(sorted(labels.items())))
        known = samples.get(key)
        if known is None:
            samples[key] = [name, labels, value, exemplar]
        else:
            known[2] = combine((known[2], value))
            known[3] = max(filter(None, (known[3], exemplar)), key=_timestamp, default=None)


def _timestamp(exemplar: Sequence[Any]) -> float:
    return exemplar[2] or 0.0


def _without_removed(families: Families, processes: Sequence[Families]) -> Families:
    """Leave out the series of versions that no process knows."""
    known = {
        (labels.get("model", ""), labels.get("version", NO_MODEL))
        for process in processes
        for family in process
        if family["name"] == _READY
        for _, labels, _, _ in family["samples"]
    }
    if not known:  # No process has looked at the folder yet, or there are no models.
        return families

    def stays(labels: Mapping[str, str]) -> bool:
        version = labels.get("version", NO_MODEL)
        return version == NO_MODEL or (labels.get("model", ""), version) in known

    return [{**f, "samples": [sample for sample in f["samples"] if stays(sample[1])]} for f in families]
