"""The metrics of several processes become those of one server."""

import asyncio
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.metrics import OPENMETRICS, generator_for
from service.supervisor.merging import Families, MergedMetrics, cumulative, gauge_names, merge, to_json
from tests.service.conftest import Start


def process(fill: Callable[[CollectorRegistry], None]) -> Families:
    registry = CollectorRegistry()
    fill(registry)
    return to_json(registry.collect())


def requests(count: int, version: str = "1") -> Families:
    def fill(registry: CollectorRegistry) -> None:
        Counter("sevenfold_requests", "", ["model", "version"], registry=registry).labels("cats", version).inc(count)
        ready = Gauge("sevenfold_model_ready", "", ["model", "version"], registry=registry)
        ready.labels("cats", version).set(1)

    return process(fill)


def value(families: Families, name: str, **labels: str) -> float | None:
    found = [s[2] for family in families for s in family["samples"] if s[0] == name and s[1] == labels]
    assert len(found) <= 1
    return found[0] if found else None


def test_counters_are_summed() -> None:
    merged = merge([requests(3), requests(4)])

    assert value(merged, "sevenfold_requests_total", model="cats", version="1") == 7


def test_buckets_sums_and_counts_of_histograms_are_summed() -> None:
    def observing(seconds: float) -> Families:
        return process(lambda r: Histogram("seconds", "", buckets=(0.1, 1.0), registry=r).observe(seconds))

    merged = merge([observing(0.05), observing(0.5)])

    assert value(merged, "seconds_bucket", le="0.1") == 1
    assert value(merged, "seconds_bucket", le="1.0") == 2
    assert value(merged, "seconds_bucket", le="+Inf") == 2
    assert value(merged, "seconds_sum") == 0.55
    assert value(merged, "seconds_count") == 2


def test_what_a_process_had_counted_that_has_ended_stays_in_the_sum() -> None:
    ended = merge([cumulative(requests(5))], merge([cumulative(requests(10))]))

    merged = merge([requests(1)], ended)

    assert value(merged, "sevenfold_requests_total", model="cats", version="1") == 16
    assert value(merged, "sevenfold_model_ready", model="cats", version="1") == 1


def test_a_version_that_is_gone_takes_its_series_along_even_those_of_processes_that_have_ended() -> None:
    merged = merge([requests(1, version="2")], cumulative(requests(5, version="1")))

    assert value(merged, "sevenfold_requests_total", model="cats", version="1") is None
    assert value(merged, "sevenfold_requests_total", model="cats", version="2") == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sevenfold_queue_depth", 5.0),
        ("process_resident_memory_bytes", 5.0),
        ("sevenfold_queue_oldest_age_seconds", 3.0),
        ("sevenfold_model_ready", 2.0),
        ("process_start_time_seconds", 3.0),
    ],
)
def test_gauges_are_merged_by_their_meaning(name: str, expected: float) -> None:
    def gauge(number: float) -> Families:
        return process(lambda registry: Gauge(name, "", registry=registry).set(number))

    assert value(merge([gauge(2.0), gauge(3.0)]), name) == expected


def test_it_is_known_of_each_gauge_of_a_server_how_it_is_merged(start: Start) -> None:
    metrics = start().service.metrics

    async def read() -> set[str]:
        return {family.name for family in metrics.prepare_families()() if family.type == "gauge"}

    assert asyncio.run(read()) - gauge_names() == set()


def test_the_latest_exemplar_of_a_bucket_is_kept() -> None:
    def observing(trace: str) -> Families:
        def fill(registry: CollectorRegistry) -> None:
            Histogram("seconds", "", buckets=(1.0,), registry=registry).observe(0.5, {"trace_id": trace})

        return process(fill)

    older, newer = observing("a"), observing("b")
    text = generator_for(OPENMETRICS)(MergedMetrics(merge([newer, older]))).decode()

    assert 'seconds_bucket{le="1.0"} 2.0 # {trace_id="b"} 0.5' in text
