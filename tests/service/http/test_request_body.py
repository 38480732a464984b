"""Request bodies: slow clients, wrong lengths, encodings, several inputs, and the limit on all bodies together."""

import base64
import gzip
import json
import socket
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.images import encode_image
from tests.model_folders import publish
from tests.service.conftest import Running, Start
from tests.service.http.conftest import URL, StartBlocked, request_bytes
from tests.tiny.classification import COLOURS
from tests.tiny.models import tiny
from tests.waiting import wait_until


def test_clients_that_send_slowly_do_not_block_others(start_blocked: StartBlocked) -> None:
    server = start_blocked(max_queue=2)
    server.unblock()
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.running.port))) for _ in range(5)
        ]
        for connection in connections:
            connection.sendall(request_bytes(10.0)[:-10])
        wait_until(lambda: server.used_body_bytes > 0)

        assert server.ask(20.0).status_code == 200

        for connection in connections:
            connection.sendall(request_bytes(10.0)[-10:])
            assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 200")


def test_an_invalid_content_length_is_rejected(start_blocked: StartBlocked) -> None:
    server = start_blocked()

    with socket.create_connection(("127.0.0.1", server.running.port)) as connection:
        connection.sendall(request_bytes(10.0).replace(b"Content-Length: ", b"Content-Length: " + b"0" * 5000))
        status_line = connection.makefile("rb").readline()

    assert status_line.startswith(b"HTTP/1.1 400")


def test_bodies_that_exceed_their_total_limit_are_rejected(start_blocked: StartBlocked) -> None:
    server = start_blocked(max_bodies_bytes=1_000)

    with socket.create_connection(("127.0.0.1", server.running.port)) as connection:
        head = request_bytes(10.0).replace(b"Content-Length: 5", b"Content-Length: 9005")
        connection.sendall(head + b" " * 900)
        wait_until(lambda: server.used_body_bytes > 900)
        rejected = server.ask(20.0)

    assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "overloaded")
    assert rejected.headers["retry-after"] == "1"
    wait_until(lambda: server.used_body_bytes == 0)
    server.unblock()
    assert server.ask(20.0).status_code == 200


def post(server: Running, model: str, content: bytes, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post(f"/v1/models/{model}/predict", content=content, headers=names)


def test_a_gzip_body_is_answered_like_the_plain_one(server: Running) -> None:
    body = json.dumps(COLOURS.example()).encode()

    plain = post(server, "colours", body, content_type="application/json")
    zipped = post(server, "colours", gzip.compress(body), content_type="application/json", content_encoding="gzip")

    assert zipped.status_code == 200
    assert zipped.content == plain.content


def test_an_unknown_content_encoding_is_named(server: Running) -> None:
    answer = post(server, "colours", b"{}", content_type="application/json", content_encoding="br")

    assert answer.status_code == 415
    assert "'br'" in answer.json()["error"]["message"]


def test_json_in_another_encoding_than_utf_8_is_refused(server: Running) -> None:
    body = json.dumps(COLOURS.example()).encode()

    latin = post(server, "colours", body, content_type="application/json; charset=latin1")
    utf8 = post(server, "colours", body, content_type="application/json; charset=UTF-8")

    assert (latin.status_code, utf8.status_code) == (415, 200)


def test_curl_without_a_content_type_is_told_what_to_add(server: Running) -> None:
    answer = post(server, "colours", b"\xff\xd8", content_type="application/x-www-form-urlencoded")

    assert answer.status_code == 415
    assert "add -H 'Content-Type: image/jpeg'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "query", ["&".join(f"a{i}=1" for i in range(4_000)), "&".join(f"a{i}" for i in range(60)), "a=1&a=2"]
)
def test_a_query_of_many_or_repeated_names_is_invalid(server: Running, query: str) -> None:
    answer = server.client.post(f"/v1/models/colours/predict?{query}", json=COLOURS.example())

    assert answer.status_code == 422


def test_several_images_are_answered_in_order_each_with_its_answer_or_error(server: Running) -> None:
    red, blue = (encode_image(Image.new("RGB", (8, 8), colour)) for colour in ("red", "blue"))
    files = [("image", ("red.png", red)), ("image", ("notes.txt", b"no image")), ("image", ("blue.png", blue))]

    form = server.client.post("/v1/models/colours/predict", files=files, data={"top_k": "1"})
    encoded = [base64.b64encode(content).decode() for content in (red, b"no image", blue)]
    fields = server.client.post("/v1/models/colours/predict", json={"image": encoded, "top_k": 1})

    first, second, third = form.json()["answers"]
    assert (first["label"], third["label"], first["model"]) == ("red", "blue", "colours")
    assert second["error"]["code"] == "unreadable_input"
    assert fields.json() == form.json()


def test_several_images_get_json_only(start: Start, tmp_path: Path) -> None:
    publish(tmp_path, "regions", *tiny("segmentation"))
    server = start(models=tmp_path)
    files = [("image", ("a.png", encode_image(Image.new("RGB", (8, 8))))) for _ in range(2)]

    answer = server.client.post("/v1/models/regions/predict", files=files, headers={"accept": "image/png"})

    assert answer.status_code == 422
    assert "application/json only" in answer.json()["error"]["message"]


def test_more_inputs_than_the_limit_are_refused(start: Start) -> None:
    server = start(max_inputs=2)

    answer = server.client.post("/v1/models/colours/predict", json={"image": ["", "", ""]})

    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "input_too_large")


def test_json_that_is_parsed_in_the_server_is_limited_by_what_its_model_can_use(tmp_path: Path, start: Start) -> None:
    publish(tmp_path, "films", *tiny("recommendations"))
    server = start(models=tmp_path)
    body = json.dumps({"ratings": [], "note": "x" * 2_000_000}).encode()
    headers = {"content-type": "application/json"}

    plain = server.client.post("/v1/models/films/predict", content=body, headers=headers)
    packed = server.client.post(
        "/v1/models/films/predict", content=gzip.compress(body), headers=headers | {"content-encoding": "gzip"}
    )

    assert [(r.status_code, r.json()["error"]["code"]) for r in (plain, packed)] == [(413, "body_too_large")] * 2


def test_a_content_type_of_thousands_of_parameters_is_refused(start_blocked: StartBlocked) -> None:
    server = start_blocked()
    content_type = "multipart/form-data; boundary=x" + ";a=b" * 10_000

    response = server.running.client.post(URL, content=b"x", headers={"content-type": content_type})

    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_header")


@pytest.mark.parametrize(
    ("target", "header", "status"),
    [("/v1/models/nobody/predict", "Accept: */*", 404), ("/nowhere", "Accept: */*", 404), (URL, "Accept: a/b", 406)],
)
def test_a_client_that_waits_for_permission_to_send_a_body_is_disconnected_with_the_error(
    server: Running, target: str, header: str, status: int
) -> None:
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\n{header}\r\nExpect: 100-continue\r\nContent-Length: 9000\r\n\r\n"

    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode())
        answer = connection.makefile("rb").read()  # Ends when the server closes the connection.

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in answer


def test_a_client_that_waits_for_permission_gets_it_and_keeps_its_connection(server: Running) -> None:
    head, _, body = request_bytes(50).partition(b"\r\n\r\n")

    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        interim = connection.recv(25)
        connection.sendall(body)
        answer = connection.recv(65536)

    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" not in answer
