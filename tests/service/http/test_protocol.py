"""Connections: half-closed clients, offers to upgrade, pipelined and malformed requests, requests with costly heads."""

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from service.http.arrivals import Arrivals
from service.http.protocol import HttpProtocol, ParsingTurns, make_config
from tests.service.conftest import Running, Start
from tests.service.http.conftest import URL, BlockableServer, StartBlocked, request_bytes
from tests.virtual_clock import now, run_virtually
from tests.waiting import wait_until

LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
WEBSOCKET = (
    "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


def new_protocol(config: uvicorn.Config) -> HttpProtocol:
    """Return the protocol of a connection, which is not connected."""
    return HttpProtocol(ParsingTurns(), Arrivals(), 30.0, config=config, server_state=ServerState(), app_state={})


@pytest.fixture(params=LOOPS)
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """The event loops that the server may run on; they treat the end of a connection differently."""
    return LOOPS[request.param]


def connect(server: Running) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(server: Running, *packets: bytes, until: bytes = b"") -> bytes:
    """Send packets; return what arrives until the server closes the connection, or has sent `until`."""
    with connect(server) as connection:
        for packet in packets:
            connection.sendall(packet)
        return receive(connection, until)


def receive(connection: socket.socket, until: bytes = b"") -> bytes:
    received = b""
    while not (until and until in received) and (data := connection.recv(65536)):
        received += data
    return received


def chunked(body: bytes, size: int) -> bytes:
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def with_headers(income: float, headers: str) -> bytes:
    return request_bytes(income).replace(b"Host: x\r\n", b"Host: x\r\n" + headers.encode())


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


# Half-closed clients


def send_and_shut(server: BlockableServer, data: bytes) -> socket.socket:
    connection = connect(server.running)
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
    return connection


def test_client_that_shuts_its_sending_side_gets_its_answer(start_blocked: StartBlocked, loop_factory) -> None:
    server = start_blocked(loop_factory=loop_factory)

    with send_and_shut(server, request_bytes(10.0)) as connection:
        first = connection.recv(9)
        server.wait_for_batches([[10.0]])
        server.unblock()
        received = first + connection.makefile("rb").read()

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["predictions"][0]["label"] == "no"


def test_half_closed_client_gets_the_answers_to_all_complete_requests(
    start_blocked: StartBlocked, loop_factory
) -> None:
    server = start_blocked(loop_factory=loop_factory)
    data = request_bytes(10.0) + LIVE + request_bytes(20.0) + request_bytes(30.0)[:-5]

    with send_and_shut(server, data) as connection:
        server.wait_for_batches([[10.0]])
        server.unblock()
        received = connection.makefile("rb").read()

    assert statuses(received) == [200, 200, 200]
    assert server.device.batches == [[10.0], [20.0]]


@pytest.mark.parametrize("data", [b"", LIVE[:-2], request_bytes(10.0)[:-1]], ids=["nothing", "head", "body"])
def test_half_closed_client_with_an_incomplete_request_gets_no_answer(
    start_blocked: StartBlocked, loop_factory, data: bytes
) -> None:
    server = start_blocked(loop_factory=loop_factory)

    with send_and_shut(server, data) as connection:
        received = connection.makefile("rb").read()

    assert received == b""
    assert server.device.batches == []


def test_clients_that_have_gone_are_noticed_and_their_requests_are_not_run(
    start_blocked: StartBlocked, loop_factory
) -> None:
    server = start_blocked(loop_factory=loop_factory)
    first = server.occupy_device()

    with closing(connect(server.running)) as one, closing(send_and_shut(server, request_bytes(11.0))) as half_closed:
        one.sendall(request_bytes(10.0) + LIVE)
        server.wait_for_queue(2)
        half_closed.recv(9)
    # TCP does not tell that a half-closed client has gone, once it has received the first bytes of its answer.
    wait_until(lambda: server.pipeline.queue_depth == 1)
    server.unblock()

    first.result()
    wait_until(lambda: server.pipeline.in_flight == 0)
    assert [10.0] not in server.device.batches


def test_connection_of_a_half_closed_client_ends_with_its_answer_even_if_it_was_kept_alive(
    start: Start, loop_factory
) -> None:
    server = start(loop_factory=loop_factory)

    with connect(server) as connection:
        for _ in range(3):
            connection.sendall(LIVE)
            receive(connection, until=b'"failures":{}}')
        connection.sendall(LIVE)
        connection.shutdown(socket.SHUT_WR)
        received = connection.makefile("rb").read()

    assert statuses(received) == [200]


def test_half_closed_client_gets_the_head_of_a_response_without_a_body(server: Running) -> None:
    for _ in range(5):
        with connect(server) as connection:
            connection.sendall(LIVE.replace(b"GET", b"HEAD"))
            connection.shutdown(socket.SHUT_WR)
            assert statuses(connection.makefile("rb").read()) == [200]


def test_half_closed_client_that_waited_for_permission_gets_whole_status_lines(server: Running) -> None:
    for _ in range(5):
        with connect(server) as connection:
            connection.sendall(with_headers(50.0, "Expect: 100-continue\r\n"))
            connection.shutdown(socket.SHUT_WR)
            received = connection.makefile("rb").read()
        assert received.startswith(b"HTTP/1.1 ")
        assert statuses(received)[-1] == 200
        assert b"HTTP/1.1 HTTP/1.1" not in received


def test_several_lines_of_accept_count_as_one(server: Running) -> None:
    received = exchange(
        server, with_headers(50.0, "Accept: */*\r\nAccept: application/json;q=0\r\nConnection: close\r\n")
    )

    assert statuses(received) == [406]


# Offers to upgrade


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET, "Connection: Upgrade\r\nUpgrade: TLS/1.0, anything/1\r\n"])
@pytest.mark.parametrize("is_split", [False, True])
def test_request_that_offers_to_upgrade_is_answered_over_http_1_1(server: Running, offer: str, is_split: bool) -> None:
    data = with_headers(50.0, offer)
    end = data.index(b"\r\n\r\n") + 4
    packets = (data[:end], data[end:]) if is_split else (data,)

    received = exchange(server, *packets, until=b'"notices":[]}')

    assert statuses(received) == [200]
    assert b"connection: close" not in received


def test_connection_continues_after_an_offer_to_upgrade(server: Running) -> None:
    body = request_bytes(50.0).partition(b"\r\n\r\n")[2]
    head = (
        f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{H2C}Transfer-Encoding: chunked\r\n\r\n"
    )
    closing_offer = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n")

    received = exchange(server, head.encode() + chunked(body, 7), with_headers(50.0, H2C) + LIVE, closing_offer)

    assert statuses(received) == [200, 200, 200, 200]


# Requests that cost much to parse


def test_head_of_a_request_is_limited(server: Running) -> None:
    many_headers = LIVE.replace(b"Host: x\r\n", b"".join(b"h%d: 1\r\n" % i for i in range(1_000)))
    long_header = LIVE.replace(b"Host: x", b"Host: x\r\nX-Long: " + b"a" * 200_000)
    long_path = LIVE.replace(b"/health/live", b"/" + b"a" * 200_000)

    for data in (many_headers, long_header, long_path):
        with connect(server) as connection:
            connection.sendall(data)
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
        assert json.loads(body)["error"]["code"] == "head_too_large"


@pytest.mark.parametrize("part", ["0\r\nX-Long: ", "5;x="], ids=["trailer", "chunk extension"])
def test_bytes_of_a_body_that_are_not_its_content_are_limited(server: Running, part: str) -> None:
    head = request_bytes(1.0).partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"

    with connect(server) as connection:
        connection.sendall(head + b"5\r\nabcde\r\n" + part.encode() + b"a" * 200_000)
        received = connection.recv(65536)

    assert statuses(received) == [431]


class Client(asyncio.Transport):
    """The server's side of a connection, whose client sends whenever the server reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.answers = True, 0
        self.written, self.is_closed = b"", False

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def write(self, data: Any) -> None:
        self.answers += data.count(b"HTTP/1.1 200")
        self.written += data

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


def test_a_client_that_sends_faster_than_it_is_answered_has_to_wait() -> None:
    config, client, packet = make_config(answer), Client(), LIVE * 90  # Less than a slice.

    async def send_whenever_it_is_read() -> int:
        config.load()
        protocol = HttpProtocol(
            ParsingTurns(), Arrivals(), 30.0, config=config, server_state=ServerState(), app_state={}
        )
        protocol.connection_made(client)
        sent = most_waiting = 0
        for _ in range(1_000):
            if client.reads:
                protocol.data_received(packet)
                sent += 90
            await asyncio.sleep(0)
            most_waiting = max(most_waiting, sent - client.answers)
        return most_waiting

    most_waiting = asyncio.run(send_whenever_it_is_read())

    assert client.answers > 180
    assert most_waiting <= 270


@pytest.mark.parametrize("sent", [b"", b"GET /health/live HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_does_not_send_a_whole_head_in_time_is_disconnected(sent: bytes) -> None:
    client = Client()

    async def connect() -> float:
        config = make_config(answer)
        config.load()
        protocol = HttpProtocol(
            ParsingTurns(), Arrivals(), 30.0, config=config, server_state=ServerState(), app_state={}
        )
        protocol.connection_made(client)
        if sent:
            protocol.data_received(sent)
        while not client.is_closed:
            await asyncio.sleep(1.0)
        return now()

    assert 30.0 <= run_virtually(connect()) <= 31.0
    assert client.written.endswith(b"}}")
    assert b"408 " in client.written


def test_a_request_that_takes_longer_than_its_head_may_is_answered() -> None:
    client = Client()

    async def answer_late(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(100)
        await answer(scope, receive, send)

    async def connect() -> None:
        config = make_config(answer_late)
        config.load()
        protocol = HttpProtocol(
            ParsingTurns(), Arrivals(), 30.0, config=config, server_state=ServerState(), app_state={}
        )
        protocol.connection_made(client)
        protocol.data_received(LIVE)
        await asyncio.sleep(101)
        protocol.connection_lost(None)

    run_virtually(connect())

    assert client.answers == 1


def test_header_and_path_below_the_limit_are_accepted(server: Running) -> None:
    headers = {"x-long": "a" * 30_000} | {f"h{i}": "1" for i in range(150)}

    assert server.client.get("/health/live", headers=headers).status_code == 200
    assert server.client.get("/" + "a" * 30_000).status_code == 404


def test_body_in_chunks_of_one_byte_is_read_whole(server: Running) -> None:
    rows = [{"income": 50, "debt": number, "job": "baker"} for number in range(900)]
    head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

    received = exchange(server, head.encode() + chunked(json.dumps({"rows": rows}).encode(), 1), until=b"]}")

    assert statuses(received) == [200]


def test_thousands_of_pipelined_requests_are_answered_in_order(start: Start, loop_factory) -> None:
    server = start(loop_factory=loop_factory)
    requests = [LIVE.replace(b"\r\n\r\n", b"\r\nX-Request-Id: r%d\r\n\r\n" % number) for number in range(2_000)]

    with connect(server) as connection:
        connection.sendall(b"".join(requests))
        connection.shutdown(socket.SHUT_WR)
        received = connection.makefile("rb").read()

    ids = [line.partition(b": ")[2] for line in received.split(b"\r\n") if line.startswith(b"x-request-id")]
    assert ids == [b"r%d" % number for number in range(2_000)]


# Malformed requests


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        LIVE.replace(b"Host: x", b"Content-Length: 1\r\nContent-Length: 2"),
        LIVE.replace(b"Host: x", b"Content-Length: 1\r\nTransfer-Encoding: chunked"),
        LIVE.replace(b"live", b"\xff"),
        with_headers(1.0, "Transfer-Encoding: chunked\r\n").replace(b"Content-Length", b"X") + b"zz\r\n",
    ],
    ids=["TLS", "HTTP/2", "two lengths", "length and chunks", "byte in the path", "bad chunk"],
)
def test_malformed_request_gets_an_error_in_the_common_format(server: Running, data: bytes) -> None:
    head, _, body = exchange(server, data).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert json.loads(body)["error"]["code"] == "malformed_request"


def test_requests_before_a_malformed_one_are_answered(server: Running) -> None:
    received = exchange(server, LIVE + request_bytes(50.0) + b"nonsense\r\n\r\n" + LIVE)

    assert statuses(received) == [200, 200]


def test_connect_is_refused_with_the_methods_that_are_allowed(server: Running) -> None:
    received = exchange(server, b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n")

    assert statuses(received) == [405]
    assert b"allow: GET, HEAD, OPTIONS, POST\r\n" in received
