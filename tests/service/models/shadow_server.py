"""Helpers for tests of shadow traffic over HTTP: publish versions of `credit`, send requests, read the report."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.model_folders import publish
from tests.service.conftest import Running
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}
LENIENT = {"shadow": {"all": 1.0}, "shadow_requests": 5, "shadow_slowdown": 1e6, "rescan_seconds": 0}
"""Settings that mirror all requests and ignore timings: runs of tiny models are too short to compare."""


def publish_credit(
    root: Path, version: int, *, labels: tuple[str, ...] = CREDIT.labels, graph: bytes | None = None
) -> Path:
    return publish(root, "credit", replace(CREDIT, labels=labels), graph or credit_graph(), version=version)


def predict(server: Running, model: str = "credit", **request: Any) -> Any:
    """Send a request that must be answered."""
    response = server.client.post(f"/v1/models/{model}/predict", **request or {"json": ROW})
    assert response.status_code == 200, response.text
    return response


def report(server: Running, version: int = 2, model: str = "credit") -> Any:
    return server.client.get(f"/v1/models/{model}/versions/{version}/shadow").json()


def is_decided(server: Running, version: int = 2, model: str = "credit") -> bool:
    return report(server, version, model).get("verdict", "running") != "running"


def predict_until(server: Running, condition: Callable[[], bool], **request: Any) -> list[str]:
    """Send requests until the condition holds; return the versions that answered."""
    versions: list[str] = []

    def predict_unless_done() -> bool:
        if condition():
            return True
        versions.append(predict(server, **request).headers["x-model"])
        return False

    wait_until(predict_unless_done, interval_s=0)
    return versions


def predict_until_decided(server: Running, version: int = 2, **request: Any) -> list[str]:
    """Send requests until a version is promoted or rolled back; return the versions that answered."""
    return predict_until(server, lambda: is_decided(server, version), **request)


def listed_version(server: Running, version: int) -> dict[str, Any]:
    """Return a version of the only model as `GET /v1/models` lists it."""
    versions = server.client.get("/v1/models").json()["models"][0]["versions"]
    return next(listed for listed in versions if listed["version"] == str(version))
