"""Cross-origin requests: preflights, headers of answers and errors, and which origins may be set."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from service.http.api_keys import new_key
from service.http.cors import CorsMiddleware, check_origins
from service.http.middleware import RequestMiddleware
from service.metrics import Metrics
from service.settings import InvalidSetting, Settings, read_settings
from tests.service.conftest import Running, Start, running

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}
URL = "/v1/models/credit/predict"
LISTED, OTHER = "https://a.example", "https://evil.example"
KEY, LINE = new_key("a", "k" * 40)


def preflight(server: Running, origin: str, method: str = "POST", headers: str = "content-type") -> httpx.Response:
    sent = {"origin": origin, "access-control-request-method": method, "access-control-request-headers": headers}
    return server.client.options(URL, headers=sent)


@pytest.fixture(scope="module")
def server(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server for two origins, that needs an API key."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(LINE)
    origins = (LISTED, "http://localhost:3000")
    settings = Settings(models=tiny_models, api_keys_file=file, cors_origins=origins, max_inputs=2, rescan_seconds=0)
    with running(settings) as server:
        yield server


@pytest.fixture(scope="module")
def closed(tiny_models: Path) -> Iterator[Running]:
    """A server with default settings."""
    with running(Settings(models=tiny_models, rescan_seconds=0)) as server:
        yield server


@pytest.mark.parametrize("origin", [LISTED, "http://localhost:3000"])
def test_a_preflight_of_a_listed_origin_is_answered_without_a_key(server: Running, origin: str) -> None:
    response = preflight(server, origin, headers="authorization, content-type, x-request-timeout-ms, traceparent")

    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "Authorization" in response.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in response.headers
    assert "x-request-id" in response.headers


@pytest.mark.parametrize(
    ("origin", "method", "headers", "refused"),
    [
        (OTHER, "POST", "content-type", "origin"),
        (LISTED.replace("https", "http"), "POST", "content-type", "origin"),
        (LISTED + ".evil.example", "POST", "content-type", "origin"),
        ("null", "POST", "content-type", "origin"),
        (LISTED, "DELETE", "content-type", "method"),
        (LISTED, "POST", "x-other", "headers"),
    ],
)
def test_other_preflights_are_refused_in_the_format_of_all_errors(
    server: Running, origin: str, method: str, headers: str, refused: str
) -> None:
    response = preflight(server, origin, method, headers)

    assert response.status_code == 403
    assert response.json()["error"]["code"] == "forbidden"
    assert f"refused: {refused}" in response.json()["error"]["message"]
    assert response.headers.get("access-control-allow-origin") == (None if refused == "origin" else LISTED)
    assert "Origin" in response.headers["vary"]


def test_a_page_of_a_listed_origin_may_read_the_answer_and_its_headers(server: Running) -> None:
    headers = {"origin": LISTED, "authorization": f"Bearer {KEY}"}

    answer = server.client.post(URL, json=ROW, headers=headers)

    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == LISTED
    assert "Origin" in answer.headers["vary"]
    assert {"x-model", "x-request-id", "server-timing", "retry-after"} <= set(exposed)


@pytest.mark.parametrize(
    ("path", "authorization", "status"),
    [(URL, "", 401), ("/v1/models/nobody", f"Bearer {KEY}", 404), ("/nowhere", f"Bearer {KEY}", 404)],
)
def test_a_page_of_a_listed_origin_may_read_errors(server: Running, path: str, authorization: str, status: int) -> None:
    response = server.client.get(path, headers={"origin": LISTED, "authorization": authorization})

    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == LISTED


def test_pages_of_other_origins_may_read_nothing(server: Running) -> None:
    answer = server.client.post(URL, json=ROW, headers={"origin": OTHER, "authorization": f"Bearer {KEY}"})

    assert answer.status_code == 200  # Whoever has a key may use it; the browser keeps the answer from the page.
    assert "access-control-allow-origin" not in answer.headers


def test_options_that_is_no_preflight_lists_the_methods_as_ever(server: Running) -> None:
    authorization = {"authorization": f"Bearer {KEY}"}

    without_origin = server.client.options(URL, headers=authorization)
    with_origin = server.client.options(URL, headers=authorization | {"origin": LISTED})

    assert [response.status_code for response in (without_origin, with_origin)] == [204, 204]
    assert {response.headers["allow"] for response in (without_origin, with_origin)} == {"OPTIONS, POST"}
    assert with_origin.headers["access-control-allow-origin"] == LISTED


def test_preflights_are_counted(server: Running) -> None:
    def count() -> float:
        text = server.client.get("/metrics").text
        lines = [line for line in text.splitlines() if line.startswith('sevenfold_requests_total{model="none"')]
        return sum(float(line.split()[-1]) for line in lines if 'status="200"' in line)

    before = count()
    preflight(server, LISTED)

    assert count() == before + 2  # And the request for the metrics.


def test_without_the_setting_there_are_no_headers_and_no_preflights(closed: Running) -> None:
    answer = closed.client.post(URL, json=ROW, headers={"origin": LISTED})
    options = preflight(closed, LISTED)

    assert not [name for response in (answer, options) for name in response.headers if name.startswith("access-")]
    assert "vary" not in answer.headers
    assert (options.status_code, options.headers["allow"]) == (204, "OPTIONS, POST")


def test_a_star_allows_every_origin_but_no_cookies(start: Start) -> None:
    server = start(cors_origins=("*",), rescan_seconds=0)

    answer = server.client.post(URL, json=ROW, headers={"origin": OTHER, "cookie": "a=b"})

    assert preflight(server, OTHER).headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


def test_pages_of_other_sites_still_cannot_change_versions(start: Start) -> None:
    server = start(cors_origins=("*",), admin=True, rescan_seconds=0)

    response = server.client.post("/v1/models/credit/versions/1/promote", headers={"origin": OTHER})

    assert response.status_code == 403


def test_an_unexpected_error_can_be_read_by_pages_too() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("broken")

    async def ask() -> httpx.Response:
        app: Any = CorsMiddleware(RequestMiddleware(fail, Metrics()), [LISTED])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.get("/", headers={"origin": LISTED})

    response = asyncio.run(ask())

    assert response.status_code == 500
    assert response.headers["access-control-allow-origin"] == LISTED


def test_origins_are_read_in_any_case() -> None:
    settings = read_settings(["--cors-origins", "https://A.example, http://[::1]:3000"], {})

    assert check_origins(settings.cors_origins) == ("https://a.example", "http://[::1]:3000")


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        (["*", LISTED], "stands for all origins; do not list others beside it"),
        (["a.example"], "'a.example' is not an origin. Write https://HOST"),
        ([LISTED + "/"], "without a path or a slash at the end"),
        ([LISTED + "/app"], "is not an origin"),
        (["https://*.example"], "is not an origin"),
        (["https://user@a.example"], "is not an origin"),
        (["https://a.example:port"], "is not an origin"),
        (["null"], "is not an origin"),
        (["https://bücher.example"], "names with other letters as xn--"),
        (["https://a.example:443"], "browsers leave out the port"),
        (["http://a.example:80"], "browsers leave out the port"),
    ],
)
def test_what_no_browser_sends_as_an_origin_is_an_error(origins: list[str], message: str) -> None:
    with pytest.raises(InvalidSetting) as caught:
        check_origins(origins)

    assert message in str(caught.value)
