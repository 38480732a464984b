"""HEAD, OPTIONS and methods that a path does not support."""

import pytest

from tests.service.conftest import Running

GET_PATHS = [
    "/health/started",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/v1/models",
    "/v1/models/credit",
    "/openapi.json",
    "/docs",
]
PREDICT = "/v1/models/credit/predict"


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_has_the_headers_of_get_and_no_body(server: Running, path: str) -> None:
    get, head = server.client.get(path), server.client.head(path)

    assert (head.status_code, head.headers["content-type"], head.content) == (200, get.headers["content-type"], b"")
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("path", [*GET_PATHS, PREDICT])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "TRACE", "PATCH"])
def test_unsupported_method_is_answered_with_the_supported_ones(server: Running, path: str, method: str) -> None:
    answer = server.client.request(method, path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == ("OPTIONS, POST" if path == PREDICT else "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("path", [*GET_PATHS, PREDICT])
def test_options_lists_the_supported_methods(server: Running, path: str) -> None:
    answer = server.client.options(path)

    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["allow"] == ("OPTIONS, POST" if path == PREDICT else "GET, HEAD, OPTIONS")


def test_head_of_a_path_without_get_is_refused(server: Running) -> None:
    answer = server.client.head(PREDICT)

    assert (answer.status_code, answer.headers["allow"]) == (405, "OPTIONS, POST")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_unknown_path_is_not_found_by_any_method(server: Running, method: str) -> None:
    assert server.client.request(method, "/nowhere").status_code == 404
