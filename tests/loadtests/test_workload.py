"""What is sent: bodies from the server's own examples and from files, weights, stages, objectives and shapes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.objectives import Measured, Objectives
from loadtests.shapes import SHAPES, users_at
from loadtests.workload import (
    Body,
    ModelWorkload,
    Server,
    WorkloadError,
    discover,
    parse_pairs,
    parse_server_timing,
    with_weights,
)
from tests.images import encode_image, red_image

WORKLOADS = [ModelWorkload(name, name, f"/{name}", (Body("application/json", b"{}"),)) for name in ("a", "b")]


def test_each_model_gets_its_example_and_the_files_of_the_types_that_it_takes(url: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encode_image(red_image(), "JPEG"))
    (tmp_path / "classification-own.jpg").write_bytes(encode_image(red_image(), "JPEG"))
    (tmp_path / "notes.md").write_text("not for any model")

    found = {workload.name: workload for workload in discover(Server(url), files=tmp_path)}

    assert [body.source for body in found["classification"].bodies] == ["example", "classification-own.jpg"]
    assert "photo.jpg" in [body.source for body in found["segmentation"].bodies]
    assert [body.source for body in found["tabular"].bodies] == ["example"]
    assert found["segmentation"].bodies[-1].content_type == "image/jpeg"


def test_a_file_that_the_model_refuses_is_left_out(url: str, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 this is no picture")

    (workload,) = discover(Server(url), files=tmp_path, only=["classification"])

    assert [body.source for body in workload.bodies] == ["example"]


def test_a_server_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(
        WorkloadError, match=r"http://127\.0\.0\.1:9/v1/models cannot be reached.*Is the server running"
    ):
        discover(Server("http://127.0.0.1:9"))


@pytest.mark.parametrize("address", ["", "127.0.0.1:8000", "ftp://host", "http://"])
def test_what_is_no_base_url_is_refused(address: str) -> None:
    with pytest.raises(WorkloadError, match="is no base URL; give one such as"):
        Server(address)


@contextmanager
def guarded_server(key: str) -> Iterator[str]:
    """A server that answers an empty list of models, to those who have the key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] == f"Bearer {key}"
            error = {"error": {"code": "unauthorized", "message": "Send an API key."}}
            content = json.dumps({"models": [], "paths": {}} if allowed else error).encode()
            self.send_response(200 if allowed else 401)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_missing_key_is_said_and_the_right_one_is_sent() -> None:
    with guarded_server("secret") as address:
        with pytest.raises(WorkloadError, match=r"401: Send an API key\. Set --api-key\."):
            Server(address).get("/v1/models")
        models = Server(address, "secret").get("/v1/models")

    assert models["models"] == []


def test_a_server_without_models_is_an_error() -> None:
    with guarded_server("key") as address, pytest.raises(WorkloadError, match="has no model that is ready"):
        discover(Server(address, "key"))


def test_weights_hold_for_the_models_that_are_named_and_all_for_the_others() -> None:
    weighted = with_weights(WORKLOADS, "a=3,all=0.5")

    assert [workload.weight for workload in weighted] == [3.0, 0.5]


def test_a_model_of_weight_0_is_not_asked() -> None:
    assert [workload.name for workload in with_weights(WORKLOADS, "a=0")] == ["b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "not NAME=NUMBER"),
        ("a=-1", "negative"),
        ("a=inf", "infinite"),
        ("a=nan", "negative or infinite"),
        ("c=1", "names c"),
        ("all=0", "leaves no model"),
    ],
)
def test_weights_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        with_weights(WORKLOADS, text)


def test_a_number_alone_holds_for_all() -> None:
    assert parse_pairs("250, slow=2000", "--p99-ms") == {"all": 250.0, "slow": 2000.0}


def test_stages_are_read_from_the_header() -> None:
    assert parse_server_timing('receive;dur=0.2, infer;dur=5.25;desc="graph", total;dur=6') == {
        "receive": 0.2,
        "infer": 5.25,
        "total": 6.0,
    }


@given(st.text())
def test_no_header_breaks_the_reading_of_stages(header: str) -> None:
    parse_server_timing(header)


def test_objectives_are_judged_per_model() -> None:
    objectives = Objectives({"slow": 1000.0, "all": 100.0}, 0.01)

    verdict = objectives.judge(
        [
            Measured("slow", 100, 0, 900.0),
            Measured("fast", 100, 0, 101.0),
            Measured("failing", 100, 2, 5.0),
            Measured("good", 100, 1, 5.0),
        ]
    )

    assert verdict.problems == {
        "slow": "",
        "fast": "p99 above 100 ms",
        "failing": "more errors than 1.00%",
        "good": "",
    }
    assert not verdict.kept


def test_a_run_without_requests_keeps_no_objective() -> None:
    verdict = Objectives({}, 0.0).judge([])

    assert not verdict.kept
    assert "no request was sent" in verdict.table()


def test_shapes_have_the_form_that_their_names_say() -> None:
    def users(name: str) -> list[int | None]:
        return [users_at(SHAPES[name], i / 10, 100) for i in range(11)]

    assert users("steps") == [20, 20, 40, 40, 60, 60, 80, 80, 100, 100, None]
    assert users("spike") == [20, 20, 20, 20, 100, 100, 20, 20, 20, 20, None]
    assert users("soak") == [1, *([100] * 9), None]
