"""What a client finds out about the service: models, documentation, health, metrics, and the shape of errors."""

import re

import pytest

from tests.service.conftest import Running, Start

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}


def test_a_model_tells_its_card_its_labels_and_an_example_that_works(server: Running) -> None:
    details = server.client.get("/v1/models/colours").json()

    assert details["labels"] == ["red", "green", "blue"]
    assert details["card"] == "# colours\n"
    assert details["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [32, 32, 3]}]
    assert server.client.post("/v1/models/colours/predict", json=details["example"]).status_code == 200
    by_version = server.client.get("/v1/models/colours/versions/1").json()
    # What a batch takes changes with every request, and is measured for each size up to the limit.
    curve = by_version.pop("curve")
    assert {point["size"] for point in details.pop("curve")} == {point["size"] for point in curve} >= {1}
    assert by_version == details


def test_every_example_of_the_documentation_works_when_pressed(server: Running) -> None:
    document = server.client.get("/openapi.json").json()

    posts = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
    assert set(posts) == {
        f"/v1/models/{name}{version}/predict" for name in ("colours", "credit") for version in ("", "/versions/1")
    }
    for path, operation in posts.items():
        example = operation["requestBody"]["content"]["application/json"]["example"]
        prefilled = {p["name"]: p["schema"]["default"] for p in operation["parameters"] if "default" in p["schema"]}
        answer = server.client.post(path, json=example, params=prefilled)
        assert answer.status_code == 200
        assert answer.json() == operation["responses"]["200"]["content"]["application/json"]["example"]


def test_the_documentation_types_each_models_rows_by_its_columns(server: Running) -> None:
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]

    assert set(schemas["credit_Row"]["properties"]) == {"income", "debt", "job", "sex"}
    assert "baker, clerk" in schemas["credit_Row"]["properties"]["job"]["description"]


def test_the_documentation_refers_to_nothing_that_is_not_there(server: Running) -> None:
    text = server.client.get("/openapi.json").text
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]

    references = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert references <= set(schemas)


def test_the_page_of_the_documentation_needs_no_other_server(server: Running) -> None:
    page = server.client.get("/docs").text

    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources
    for source in sources:
        assert source.startswith("/")
        assert server.client.get(source).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("POST", "/v1/models/nobody/predict", 404, "model_not_found"),
        ("POST", "/v1/models/credit/versions/7/predict", 404, "model_not_found"),
        ("POST", "/v1/models/..%2f..%2fetc/predict", 404, "not_found"),
        ("DELETE", "/v1/models/credit", 405, "method_not_allowed"),
        ("GET", "/v1/models/credit/predict", 405, "method_not_allowed"),
    ],
)
def test_errors_have_one_shape(server: Running, method: str, path: str, status: int, code: str) -> None:
    answer = server.client.request(method, path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()) == {"error"}


def test_a_request_id_that_could_forge_a_log_line_is_not_taken(server: Running) -> None:
    answer = server.client.get("/health/live", headers={"x-request-id": 'a"} {"level": "error'})

    assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])


def test_the_metrics_count_exactly_what_was_sent(start: Start) -> None:
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
    assert float(samples['sevenfold_queue_depth{model="credit"}']) == 0
    assert float(samples['sevenfold_requests_in_flight{model="credit"}']) == 0
    assert float(samples['sevenfold_model_ready{model="credit",version="1"}']) == 1
    assert "made-up-name" not in text
