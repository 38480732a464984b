"""The clients of the load tests: addresses, and responses in every form that servers and proxies send."""

import asyncio
from collections.abc import Sequence

import pytest

from loadtests.clients import Address, ClientPool, Connection, Reply, ScheduledRequest, parse_url, prepare_request


@pytest.mark.parametrize(
    ("url", "address", "authority"),
    [
        ("http://127.0.0.1:8000", Address("127.0.0.1", 8000), "127.0.0.1:8000"),
        ("http://models.example/", Address("models.example", 80), "models.example"),
        ("https://models.example/v/", Address("models.example", 443, True, True, "/v"), "models.example"),
        ("http://[::1]:9000", Address("::1", 9000), "[::1]:9000"),
    ],
)
def test_a_base_url_says_where_the_server_is(url: str, address: Address, authority: str) -> None:
    assert parse_url(url) == address
    assert parse_url(url).authority == authority


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://"])
def test_what_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is no base URL; give one such as"):
        parse_url(url)


def test_a_certificate_is_checked_unless_asked_otherwise() -> None:
    checked, unchecked = (parse_url("https://x", verify=verify).ssl_context for verify in (True, False))

    assert checked is not None
    assert checked.check_hostname
    assert unchecked is not None
    assert not unchecked.check_hostname
    assert parse_url("http://x").ssl_context is None


def test_the_host_header_names_the_server() -> None:
    request = prepare_request("/p", "text/plain", b"x", host="models.example", X_Request_Timeout_Ms="5")

    assert request.startswith(b"POST /p HTTP/1.1\r\nHost: models.example\r\n")
    assert b"\r\nX-Request-Timeout-Ms: 5\r\n" in request


class FakeTransport(asyncio.Transport):
    """A connection whose other end says nothing."""

    def write(self, data: bytes) -> None:
        """Drop it."""

    def abort(self) -> None:
        """Do nothing."""


def respond_in(parts: Sequence[bytes]) -> list[object]:
    """Return what a connection makes of a response that comes in these parts."""
    connection, responses = Connection(), []
    connection.connection_made(FakeTransport())
    connection.send(b"", responses.append)
    for part in parts:
        connection.data_received(part)
    return responses


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n0\r\n\r\r\n3\r\nabc\r\n0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        CHUNKED,
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
def test_a_response_is_complete_with_its_last_byte_and_not_before(response: bytes, size: int) -> None:
    parts = [response[at : at + size] for at in range(0, len(response), size)]

    assert respond_in(parts[:-1]) == []
    ((head, body),) = respond_in(parts)  # type: ignore[misc]

    assert head.startswith(b"HTTP/1.1 20")
    assert head + b"\r\n\r\n" + body == response


def test_a_response_from_an_address_with_a_name_arrives() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        await writer.drain()
        writer.close()

    async def main() -> Reply:
        async with await asyncio.start_server(serve, "localhost", 0) as server:
            port = server.sockets[0].getsockname()[1]
            pool = ClientPool(Address("localhost", port))
            reply = await pool.send(ScheduledRequest(0.0, prepare_request("/", "text/plain", b"")))
            pool.close()
            return reply

    assert asyncio.run(main()).status == 200
