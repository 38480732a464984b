"""The metrics count requests."""

from tests.service.conftest import Start

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
    assert float(samples['sevenfold_batch_size_count{model="credit"}']) == 3
    for stage in ("receive", "decode", "queue", "infer", "postprocess"):
        assert float(samples[f'sevenfold_stage_duration_seconds_count{{model="credit",stage="{stage}"}}']) == 3
    assert float(samples['sevenfold_queue_depth{model="credit",version="1"}']) == 0
    assert float(samples['sevenfold_requests_in_flight{model="credit",version="1"}']) == 0
    assert float(samples['sevenfold_model_ready{model="credit",version="1"}']) == 1
    assert "made-up-name" not in text
