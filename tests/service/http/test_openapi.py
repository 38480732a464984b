"""The OpenAPI document and the page that shows it."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.model_folders import publish
from tests.service.conftest import Running, Start
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until


def test_every_example_in_the_document_works(server: Running) -> None:
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


def test_the_schema_of_a_row_has_the_columns_of_the_model(server: Running) -> None:
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]

    assert set(schemas["credit_Row"]["properties"]) == {"income", "debt", "job", "sex"}
    assert "baker, clerk" in schemas["credit_Row"]["properties"]["job"]["description"]


def test_a_list_of_images_and_its_answers_are_documented(server: Running) -> None:
    document = server.client.get("/openapi.json").json()

    operation = document["paths"]["/v1/models/colours/predict"]["post"]
    image = document["components"]["schemas"]["colours_ClassificationRequest"]["properties"]["image"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]["image"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert [option["type"] for option in image["anyOf"]] == ["string", "array"]
    assert [option["type"] for option in form["anyOf"]] == ["string", "array"]
    assert "answers" in answer["anyOf"][1]["properties"]


def test_options_are_described_in_the_query(server: Running) -> None:
    operation = server.client.get("/openapi.json").json()["paths"]["/v1/models/colours/predict"]["post"]

    query = {p["name"]: p["description"] for p in operation["parameters"] if p["in"] == "query"}
    assert set(query) == {"top_k", "heatmap", "timeout_ms", "priority"}
    assert all(len(text.removesuffix("Must not also be set in the body.")) > 10 for text in query.values())


def test_the_documented_body_of_an_image_model_is_the_form_and_that_of_a_table_json(server: Running) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]

    bodies = {name: paths[f"/v1/models/{name}/predict"]["post"]["requestBody"] for name in ("colours", "credit")}
    form = bodies["colours"]["content"]["multipart/form-data"]["schema"]["properties"]
    first = {name: next(iter(body["content"])) for name, body in bodies.items()}
    assert first == {"colours": "multipart/form-data", "credit": "application/json"}
    assert list(form) == ["image"]  # The page would send made-up values of other fields.


def test_every_schema_reference_resolves(server: Running) -> None:
    text = server.client.get("/openapi.json").text
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]

    references = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert references <= set(schemas)


def test_the_docs_page_loads_nothing_from_other_hosts(server: Running) -> None:
    page = server.client.get("/docs").text

    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources
    for source in sources:
        assert source.startswith("/")
        assert server.client.get(source).status_code == 200


def paths(server: Running) -> set[str]:
    return {path for path in server.client.get("/openapi.json").json()["paths"] if path.endswith("/predict")}


def test_the_document_follows_the_models_that_are_served(start: Start, tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish(models, "credit", CREDIT, credit_graph())
    server = start(models=models, rescan_seconds=0.05)
    before = paths(server)
    publish(tmp_path, "loans", CREDIT, credit_graph())
    shutil.move(tmp_path / "loans", models / "loans")

    wait_until(lambda: paths(server) != before)

    assert paths(server) - before == {"/v1/models/loans/predict", "/v1/models/loans/versions/1/predict"}


def test_clients_that_ask_at_a_time_get_the_same_document(server: Running) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: server.client.get("/openapi.json"), range(16)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
