"""The OpenAPI document and the page that shows it."""

import re

from tests.service.conftest import Running


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
