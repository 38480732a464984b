"""The metrics count requests, and each series is exposed once."""

from collections import Counter
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics
from tests.model_folders import publish
from tests.service.conftest import Running, Start
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}


def test_metrics_count_the_requests_that_were_sent(start: Start) -> None:
    server = start()
    for _ in range(3):
        server.client.post("/v1/models/credit/predict", json=ROW)
    server.client.post("/v1/models/credit/predict", json={"rows": []})
    server.client.post("/v1/models/made-up-name/predict", json=ROW)

    text = server.client.get("/metrics").text

    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples['sevenfold_requests_total{model="credit",status="200"}']) == 3
    assert float(samples['sevenfold_requests_total{model="credit",status="422"}']) == 1
    assert float(samples['sevenfold_rejected_total{model="credit",reason="invalid_request"}']) == 1
    assert float(samples['sevenfold_batch_size_count{model="credit",version="1"}']) == 3
    for stage in ("receive", "decode", "queue", "infer", "postprocess"):
        assert float(samples[f'sevenfold_stage_duration_seconds_count{{model="credit",stage="{stage}"}}']) == 3
    assert float(samples['sevenfold_queue_depth{model="credit",version="1"}']) == 0
    assert float(samples['sevenfold_requests_in_flight{model="credit",version="1"}']) == 0
    assert float(samples['sevenfold_model_ready{model="credit",version="1"}']) == 1
    assert "made-up-name" not in text
    assert "_created" not in text


def series_of(text: str) -> list[tuple[str, frozenset[tuple[str, str]]]]:
    families = text_string_to_metric_families(text)
    return [(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples]


def test_each_series_is_exposed_once_if_two_versions_are_served(start: Start, tmp_path: Path) -> None:
    for version in (1, 2):
        publish(tmp_path, "credit", CREDIT, credit_graph(), version=version)
    server = start(models=tmp_path, versions=2)
    for version in ("1", "2"):
        answer = server.client.post(f"/v1/models/credit/versions/{version}/predict", json=ROW)
        assert answer.status_code == 200

    series = series_of(server.client.get("/metrics").text)

    assert [name for name, count in Counter(series).items() if count > 1] == []
    for version in ("1", "2"):
        assert ("sevenfold_batch_size_count", frozenset({("model", "credit"), ("version", version)})) in series


def test_gauges_are_read_when_the_exposition_is_prepared() -> None:
    metrics, values = Metrics(), [1.0]
    metrics.watch(lambda: [("depth", "Depth.", ["model"], [(["a"], values[0])])])

    expose = metrics.prepare_exposition()
    values[0] = 2.0

    assert 'depth{model="a"} 1.0' in expose().decode()


def test_counter_that_is_kept_elsewhere_is_exposed() -> None:
    metrics = Metrics()
    metrics.count("things", "Things.", lambda: 7)

    assert "things_total 7.0" in metrics.prepare_exposition()().decode()


def test_lag_of_the_event_loop_is_measured(server: Running) -> None:
    def count() -> float:
        text = server.client.get("/metrics").text
        (line,) = [line for line in text.splitlines() if line.startswith("sevenfold_event_loop_lag_seconds_count")]
        return float(line.split()[-1])

    wait_until(lambda: count() > 0)
