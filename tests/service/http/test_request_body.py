"""Request bodies: slow clients, wrong lengths, and the limit on all bodies together."""

import socket
from contextlib import ExitStack

from tests.service.http.conftest import StartBlocked, request_bytes
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
