"""All errors have the same format."""

import pytest

from tests.service.conftest import Running


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
def test_errors_have_the_same_format_and_a_code(
    server: Running, method: str, path: str, status: int, code: str
) -> None:
    answer = server.client.request(method, path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()) == {"error"}


def test_a_path_that_ends_with_a_slash_is_answered_with_a_hint(server: Running) -> None:
    answer = server.client.post("/v1/models/colours/predict/", json={})

    assert answer.status_code == 404
    assert "No path ends with a slash" in answer.json()["error"]["message"]
