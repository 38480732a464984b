"""A request whose client disconnects is cancelled and frees its place."""

import socket
from contextlib import ExitStack

from tests.service.http.conftest import StartBlocked, request_bytes
from tests.waiting import wait_until


def test_queued_requests_of_disconnected_clients_are_not_run(start_blocked: StartBlocked) -> None:
    server = start_blocked()
    first = server.occupy_device()

    with ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.running.port)))
            connection.sendall(request_bytes(10.0))
        server.wait_for_queue(5)
    wait_until(lambda: server.pipeline.in_flight == 1)
    server.unblock()

    first.result()
    assert server.ask(20.0).status_code == 200
    assert server.device.batches == [[1.0], [20.0]]
    metrics = server.running.client.get("/metrics").text
    assert 'sevenfold_cancelled_total{model="credit",stage="queue"} 5.0' in metrics
    assert 'sevenfold_dropped_samples_total{model="credit",version="1"} 5.0' in metrics


def test_a_client_that_disconnects_while_sending_its_body_frees_the_memory(start_blocked: StartBlocked) -> None:
    server = start_blocked()

    with socket.create_connection(("127.0.0.1", server.running.port)) as connection:
        connection.sendall(request_bytes(10.0)[:-10])
        wait_until(lambda: server.used_body_bytes > 0)
    wait_until(lambda: server.used_body_bytes == 0)

    server.unblock()
    assert server.ask(20.0).status_code == 200
    assert server.device.batches == [[20.0]]
    metrics = server.running.client.get("/metrics").text
    assert 'sevenfold_requests_total{model="credit",status="499",version="1"} 1.0' in metrics
    assert 'status="500"' not in metrics
