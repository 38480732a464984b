"""The metrics count requests, and each series is exposed once."""

import re
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path

import httpx
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from service.http.api_keys import new_key
from service.metrics import Metrics
from tests.external_tools import require_tool
from tests.model_folders import publish
from tests.service.certificates import Authority
from tests.service.conftest import Running, Start
from tests.service.http.conftest import FAILS, URL, BlockableServer, StartBlocked, request_bytes
from tests.service.program import ROOT, program
from tests.tiny.models import tiny
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
    assert float(samples['sevenfold_requests_total{model="credit",status="200",version="1"}']) == 3
    assert float(samples['sevenfold_requests_total{model="credit",status="422",version="1"}']) == 1
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


# Counts equal a script of requests


def counts_of(client: httpx.Client) -> dict[str, float]:
    """Return the counters and the counts of histograms that requests cause, by series."""
    text = client.get("/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        " ".join([sample.name.removeprefix("sevenfold_"), *(sample.labels[name] for name in sorted(sample.labels))]): (
            sample.value
        )
        for sample in samples
        if sample.name.startswith("sevenfold_")
        and sample.name.endswith(("_total", "_count"))
        and not sample.name.startswith(("sevenfold_event_loop_lag", "sevenfold_stray"))
        and sample.value
    }


def disconnect_while_queued(server: BlockableServer) -> None:
    in_flight = server.pipeline.in_flight
    with socket.create_connection(("127.0.0.1", server.running.port)) as connection:
        connection.sendall(request_bytes(10.0))
        server.wait_for_queue(1)
    wait_until(lambda: server.pipeline.in_flight == in_flight)


def test_counts_equal_a_script_of_requests(start_blocked: StartBlocked) -> None:
    server = start_blocked(max_body_bytes=2_000, max_queue=5)
    client = server.running.client

    first = server.occupy_device()
    disconnect_while_queued(server)
    answers = [server.submit(income) for income in (10.0, 20.0, 30.0, 40.0)]
    server.wait_for_queue(4)
    statuses = [server.ask(50.0).status_code]
    server.unblock()
    statuses += [answer.result().status_code for answer in (first, *answers)]
    statuses.append(server.ask(FAILS).status_code)
    for path, body in (
        ("/v1/models/made-up/predict", ROW),
        ("/v1/models/credit/versions/7/predict", ROW),
        (URL, {"rows": []}),
        (URL, {"rows": ROW["rows"] * 60}),
    ):
        statuses.append(client.post(path, json=body).status_code)

    assert statuses == [503, *5 * [200], 500, 404, 404, 422, 413]
    assert counts_of(client) == {
        "requests_total credit 200 1": 5,
        "requests_total credit 413 1": 1,
        "requests_total credit 422 1": 1,
        "requests_total credit 499 1": 1,
        "requests_total credit 500 1": 1,
        "requests_total credit 503 1": 1,
        "requests_total none 404 none": 2,
        "requests_total none 200 none": 1,  # GET /v1/models, when the server was started.
        "rejected_total credit invalid_request": 1,
        "rejected_total credit body_too_large": 1,
        "rejected_total credit overloaded": 1,
        "rejected_total none model_not_found": 2,
        "cancelled_total credit queue": 1,
        "dropped_samples_total credit 1": 1,
        "request_duration_seconds_count credit": 10,
        "stage_duration_seconds_count credit receive": 5,
        "stage_duration_seconds_count credit decode": 5,
        "stage_duration_seconds_count credit queue": 5,
        "stage_duration_seconds_count credit infer": 5,
        "stage_duration_seconds_count credit postprocess": 5,
        "request_body_bytes_count credit": 9,  # That of the rejected request had arrived with its head.
        "response_body_bytes_count credit": 5,
        "batch_size_count credit 1": 2,
        "batch_padding_ratio_count credit 1": 2,
        "batch_failures_total credit 1": 1,
    }


def test_counts_of_a_list_whose_inputs_fail_equal_the_script(start: Start, tmp_path: Path) -> None:
    publish(tmp_path, "films", *tiny("sentiment"))
    server = start(models=tmp_path)

    response = server.client.post("/v1/models/films/predict", json={"text": [" ", "A good film.", 7, "Bad."]})

    assert response.status_code == 200
    assert [("error" in answer) for answer in response.json()["answers"]] == [True, False, True, False]
    counts = counts_of(server.client)
    assert counts["requests_total films 200 1"] == 1
    assert counts["rejected_total films unreadable_input"] == 1
    assert counts["rejected_total films invalid_request"] == 1
    assert counts["request_duration_seconds_count films"] == 1
    assert counts["stage_duration_seconds_count films infer"] == 1


def value_of(server: Running, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(server.client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


def test_padding_of_texts_is_measured_and_other_models_have_none(start: Start, tmp_path: Path) -> None:
    publish(tmp_path, "films", *tiny("sentiment"))
    publish(tmp_path, "credit", CREDIT, credit_graph())
    server = start(models=tmp_path)
    server.client.post("/v1/models/films/predict", json={"text": "Good."})
    server.client.post(URL, json=ROW)

    assert 0 < (value_of(server, "sevenfold_batch_padding_ratio_sum", model="films") or 0) < 1
    assert value_of(server, "sevenfold_batch_padding_ratio_sum", model="credit") == 0


# Gauges


def test_load_is_what_the_metrics_say(start_blocked: StartBlocked) -> None:
    server = start_blocked(max_queue=9)
    idle = server.running.client.get("/health/load").json()
    answers = [server.occupy_device(), server.submit(10.0), server.submit(20.0)]
    server.wait_for_queue(2)

    load = server.running.client.get("/health/load").json()

    assert idle == {"queue_depth": 0, "oldest_age_seconds": 0.0, "requests_in_flight": 0, "requests_limit": 9}
    assert load.pop("oldest_age_seconds") > 0
    assert load == {"queue_depth": 2, "requests_in_flight": 3, "requests_limit": 9}
    labels = {"model": "credit", "version": "1"}
    assert (value_of(server.running, "sevenfold_queue_oldest_age_seconds", **labels) or 0) > 0
    assert value_of(server.running, "sevenfold_requests_limit", **labels) == 9
    server.unblock()
    assert {answer.result().status_code for answer in answers} == {200}


def test_the_objective_is_an_exact_edge_of_the_buckets(start: Start) -> None:
    server = start(objective_ms=180.0)
    server.client.post(URL, json=ROW)

    assert value_of(server, "sevenfold_objective_seconds") == 0.18
    assert value_of(server, "sevenfold_request_duration_seconds_bucket", model="credit", le="0.18") is not None
    assert value_of(server, "sevenfold_stage_duration_seconds_bucket", stage="infer", le="0.18") is not None


def test_what_runs_is_described(server: Running) -> None:
    info = {"model": "credit", "task": "tabular", "device": "cpu", "provider": "CPUExecutionProvider"}

    assert value_of(server, "sevenfold_model_info", **info, precision="float32") == 1
    assert value_of(server, "sevenfold_device_info", requested="auto", used="cpu") == 1
    assert value_of(server, "sevenfold_build_info", version="0.1.0") == 1
    used = value_of(server, "sevenfold_device_memory_used_bytes", device="cpu")
    total = value_of(server, "sevenfold_device_memory_total_bytes", device="cpu")
    assert used is not None
    assert total is not None
    assert 0 < used < total
    assert (value_of(server, "process_resident_memory_bytes") or 0) > 0


# Versions


def test_a_version_that_is_removed_leaves_no_series(start: Start, tmp_path: Path) -> None:
    for version in (1, 2):
        publish(tmp_path, "credit", CREDIT, credit_graph(), version=version)
    server = start(models=tmp_path, versions=2, rescan_seconds=0)
    for version in ("1", "2"):
        server.client.post(f"/v1/models/credit/versions/{version}/predict", json=ROW)

    shutil.rmtree(tmp_path / "credit" / "2")
    server.service.repository.rescan()

    assert 'version="1"' in server.client.get("/metrics").text
    assert 'version="2"' not in server.client.get("/metrics").text


def test_a_request_in_flight_when_its_version_is_removed_does_not_bring_the_series_back() -> None:
    metrics = Metrics()
    metrics.add_version("credit", "2")
    metrics.request_counter("credit", "2", 200).inc()

    metrics.remove_version("credit", "2")
    metrics.request_counter("credit", "2", 200).inc()

    text = metrics.prepare_exposition()().decode()
    assert 'version="2"' not in text
    assert 'sevenfold_requests_total{model="credit",status="200",version="none"} 1.0' in text


def test_a_version_that_comes_back_is_counted_again() -> None:
    metrics = Metrics()
    metrics.add_version("credit", "2")
    metrics.remove_version("credit", "2")
    metrics.request_counter("credit", "2", 200).inc()

    metrics.add_version("credit", "2")
    metrics.request_counter("credit", "2", 200).inc()

    text = metrics.prepare_exposition()().decode()
    assert 'sevenfold_requests_total{model="credit",status="200",version="2"} 1.0' in text


def test_failed_loads_are_counted_by_model_which_is_named_in_its_rejections(start: Start, tmp_path: Path) -> None:
    folder = publish(tmp_path, "credit", CREDIT, credit_graph())
    (folder / "model.onnx").write_bytes(b"other bytes")
    server = start(models=tmp_path, rescan_seconds=0)

    status = server.client.post(URL, json=ROW).status_code
    server.service.repository.rescan()

    assert status == 503
    assert value_of(server, "sevenfold_model_load_failures_total", model="credit") == 1
    assert value_of(server, "sevenfold_rejected_total", model="credit", reason="model_unavailable") == 1


# Formats


def test_promtool_finds_no_fault_with_the_metrics(server: Running) -> None:
    promtool = require_tool("promtool")
    server.client.post(URL, json=ROW)
    text = server.client.get("/metrics").text

    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_metrics_are_openmetrics_for_those_who_ask_for_it(server: Running) -> None:
    prometheus_header = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    plain = server.client.get("/metrics")

    response = server.client.get("/metrics", headers={"accept": prometheus_header})

    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.text.endswith("# EOF\n")
    names = {family.name for family in openmetrics_families(response.text)}
    assert names == {family.name for family in text_string_to_metric_families(plain.text)}


def test_memory_of_a_device_that_does_not_answer_is_left_out(start: Start) -> None:
    gauges = []
    metrics = Metrics()
    metrics.watch_in_thread(lambda: gauges)

    gauges.append(("memory_bytes", "Memory.", ["device"], []))

    assert metrics.prepare_exposition()().decode().endswith("# TYPE memory_bytes gauge\n")


# The page that documents them


def test_the_page_lists_exactly_the_metrics_of_a_server_with_type_and_labels(tiny_models: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `((?:sevenfold|process)_\w+)` \| (\w+) \|([^|]*)\| ", page, re.MULTILINE)
    documented = {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    authority, (key, line) = Authority(tmp_path), new_key("app")
    authority.issue()
    (tmp_path / "keys").write_text(line)
    flags = ["--tls-cert", authority.cert, "--tls-key", authority.key, "--api-keys-file", tmp_path / "keys"]
    with program(tiny_models, *map(str, flags)) as (_, address, _), httpx.Client(verify=authority.trust()) as client:
        address = address.replace("http:", "https:")
        client.post(f"{address}{URL}", json=ROW, headers={"authorization": f"Bearer {key}"}).raise_for_status()
        text = client.get(f"{address}/metrics").text

    families = {
        family.name + "_total" * (family.type == "counter"): family for family in text_string_to_metric_families(text)
    }
    assert {name: family.type for name, family in families.items()} == {
        name: kind for name, (kind, _) in documented.items()
    }
    labels = {name: {frozenset(s.labels) - {"le"} for s in family.samples} for name, family in families.items()}
    assert {name: found for name, found in labels.items() if found - {documented[name][1]}} == {}
