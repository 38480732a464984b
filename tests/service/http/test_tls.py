"""HTTPS: handshakes, replacing the certificate while connections are open, and certificates that cannot be used."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from starlette.responses import Response

from service.http.listening import HttpServer
from service.http.protocol import make_config
from service.http.tls import ServerCertificate, validity
from service.process.watched_files import UnusableFile
from service.settings import InvalidSetting
from tests.service.certificates import Authority
from tests.service.conftest import Running, Start
from tests.service.http.conftest import StartBlocked, request_bytes
from tests.waiting import wait_until

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}
URL = "/v1/models/credit/predict"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """The event loops that the server may run on; each has its own implementation of TLS."""
    return LOOPS[request.param]


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    authority.issue()
    return authority


@pytest.fixture
def server(start: Start, authority: Authority, loop_factory) -> Running:
    return start_https(start, authority, loop_factory)


def start_https(start: Start, authority: Authority, loop_factory=None) -> Running:
    return start(
        loop_factory=loop_factory,
        trust=authority.trust(),
        tls_cert=authority.cert,
        tls_key=authority.key,
        rescan_seconds=0,
    )


@contextmanager
def connected(server: Running, trust: ssl.SSLContext, name: str | None = "localhost") -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain,
        trust.wrap_socket(plain, server_hostname=name, suppress_ragged_eofs=True) as connection,
    ):
        yield connection


def certificate_of(server: Running, authority: Authority, name: str | None = "localhost") -> bytes:
    trust = authority.trust()
    trust.check_hostname = name is not None
    with connected(server, trust, name) as connection:
        return connection.getpeercert(binary_form=True) or b""


def check_files(server: Running) -> None:
    for _ in range(2):
        server.service.check_files()


def metric(server: Running, name: str) -> float | None:
    lines = server.client.get("/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), None)


# Connections


def test_requests_of_all_sizes_are_answered_over_tls(server: Running, authority: Authority) -> None:
    large = {"rows": [ROW["rows"][0]] * 800}

    refused = server.client.post(URL, content=b"x" * 5_000_000, headers={"content-type": "application/json"})
    answers = [server.client.post(URL, json=body) for body in (ROW, large)]
    with connected(server, authority.trust()) as connection:
        connection.sendall(request_bytes(10.0) + LIVE)
        pipelined = b""
        while pipelined.count(b"HTTP/1.1 200 OK") < 2:
            pipelined += connection.recv(65536)
        version, protocol = connection.version(), connection.selected_alpn_protocol()

    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(answers[1].json()["predictions"]) == 800
    assert refused.status_code == 400
    assert (version, protocol) == ("TLSv1.3", None)


def test_plain_http_and_silence_and_noise_are_closed_and_hold_up_nobody(
    start: Start, authority: Authority, loop_factory, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_https(start, authority, loop_factory)
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(20)]
    received = []
    for data in (LIVE, b"\x16\x03\x01\x00\xff" + b"\0" * 300, b"\xff" * 1000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            connection.sendall(data)
            with suppress(ConnectionResetError):
                received.append(connection.makefile("rb").read())

    assert server.client.get("/health/live").status_code == 200
    assert not [data for data in received if b"HTTP" in data]
    assert metric(server, "sevenfold_stray_errors_total") == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for connection in silent:
        connection.close()


def test_old_versions_of_tls_are_refused(start: Start, authority: Authority) -> None:
    server = start_https(start, authority)
    old = authority.trust()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    modern = authority.trust()
    modern.maximum_version = ssl.TLSVersion.TLSv1_2

    with connected(server, modern) as connection:
        version = connection.version()
    with pytest.raises(ssl.SSLError), connected(server, old):
        pass

    assert version == "TLSv1.2"


@pytest.mark.parametrize("farewell", ["close_notify", "only TCP"])
def test_a_client_that_shuts_its_side_counts_as_gone(
    start_blocked: StartBlocked,
    authority: Authority,
    loop_factory,
    farewell: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    blocked = start_blocked(
        loop_factory=loop_factory, trust=authority.trust(), tls_cert=authority.cert, tls_key=authority.key
    )
    server = blocked.running
    occupying = blocked.occupy_device()

    with connected(server, authority.trust()) as connection:
        connection.sendall(request_bytes(10.0))
        wait_until(lambda: blocked.pipeline.in_flight == 2)
        if farewell == "only TCP":
            connection.shutdown(socket.SHUT_WR)
        else:
            with suppress(OSError):
                connection.unwrap()
        wait_until(lambda: blocked.pipeline.in_flight == 1)
    blocked.unblock()

    assert occupying.result().status_code == 200
    assert [10.0] not in blocked.device.batches
    assert not [record.message for record in caplog.records if "eof_received" in record.message]


# Replacing the certificate


@pytest.mark.parametrize("name", ["localhost", None], ids=["with a name", "without a name"])
def test_a_new_certificate_is_used_for_new_connections_and_open_ones_go_on(
    start: Start, authority: Authority, loop_factory, name: str | None
) -> None:
    first = authority.cert.read_bytes()
    server = start_https(start, authority, loop_factory)
    with connected(server, authority.trust()) as open_before:
        before = certificate_of(server, authority, name)
        second = authority.issue(valid_for=timedelta(days=90))
        check_files(server)
        after = certificate_of(server, authority, name)
        open_before.sendall(LIVE)
        answer = open_before.recv(65536)

    assert before == ssl.PEM_cert_to_DER_cert(first.decode())
    assert after == second
    assert answer.startswith(b"HTTP/1.1 200 OK")
    expiry = metric(server, "sevenfold_tls_certificate_expiry_timestamp_seconds")
    assert expiry == x509.load_der_x509_certificate(second).not_valid_after_utc.timestamp()


def test_a_new_certificate_that_is_broken_leaves_the_old_one_in_use(start: Start, authority: Authority) -> None:
    server = start_https(start, authority)
    before = certificate_of(server, authority)
    key = authority.key.read_bytes()

    authority.issue()
    authority.key.write_bytes(key)  # The key of the former certificate.
    check_files(server)
    mismatched = certificate_of(server, authority)
    authority.cert.unlink()
    check_files(server)

    assert mismatched == certificate_of(server, authority) == before
    assert metric(server, 'sevenfold_reload_failures_total{file="tls"}') == 2


# Certificates that cannot be used, or not for long


def load(authority: Authority) -> ServerCertificate:
    certificate = ServerCertificate(authority.cert, authority.key)
    certificate.use((authority.cert.read_bytes(), authority.key.read_bytes()))
    return certificate


def encrypt(authority: Authority, form: serialization.PrivateFormat) -> None:
    key = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"hunter2")
    authority.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))


def cut(path: Path) -> None:
    text = path.read_bytes()
    path.write_bytes(text[:200] + text[300:])


def replace_key(authority: Authority) -> None:
    cert = authority.cert.read_bytes()
    authority.issue()
    authority.cert.write_bytes(cert)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace_key, "The private key in {key} does not belong to the certificate in {cert}."),
        (lambda a: encrypt(a, serialization.PrivateFormat.PKCS8), "The private key in {key} is encrypted; remove its"),
        (lambda a: encrypt(a, serialization.PrivateFormat.TraditionalOpenSSL), "The private key in {key} is encrypted"),
        (lambda a: a.cert.write_bytes(b"\x30\x82"), "{cert} contains no certificate in PEM format."),
        (lambda a: a.cert.write_bytes(a.key.read_bytes()), "{cert} contains no certificate in PEM format."),
        (lambda a: a.key.write_bytes(a.cert.read_bytes()), "{key} contains no private key in PEM format."),
        (lambda a: cut(a.cert), "The certificate in {cert} or the private key in {key} cannot be used: "),
        (lambda a: cut(a.key), "The certificate in {cert} or the private key in {key} cannot be used: "),
    ],
)
def test_a_certificate_that_cannot_be_used_is_described(
    authority: Authority, change: Callable[[Authority], object], message: str
) -> None:
    change(authority)

    with pytest.raises(UnusableFile) as caught:
        load(authority)

    assert str(caught.value).startswith(message.format(cert=authority.cert, key=authority.key))


def test_a_certificate_that_is_missing_or_has_no_key_is_an_error_at_start(start: Start, authority: Authority) -> None:
    with pytest.raises(InvalidSetting, match="needs both --tls-cert and --tls-key"):
        start(tls_cert=authority.cert)
    authority.cert.unlink()
    with pytest.raises(InvalidSetting, match=r"Cannot read .*cert\.pem: No such file or directory\."):
        start_https(start, authority)


@pytest.mark.parametrize(
    ("valid_for", "begins_in", "problem"),
    [(timedelta(days=-1), timedelta(days=-9), "has expired"), (timedelta(9), timedelta(days=1), "is not valid yet")],
)
def test_an_expired_certificate_is_used_with_a_warning_that_says_until_when_it_was_valid(
    authority: Authority, valid_for: timedelta, begins_in: timedelta, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    authority.issue(valid_for=valid_for, begins_in=begins_in)

    certificate = load(authority)

    (record,) = caplog.records
    assert problem in record.getMessage()
    until = datetime.fromtimestamp(certificate.expires_at, UTC)
    assert record.fields["until"] == f"{until:%Y-%m-%dT%H:%M:%SZ}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("years", [1, 20, 40])
def test_the_validity_is_read_as_another_library_reads_it(authority: Authority, years: int) -> None:
    der = authority.issue(valid_for=timedelta(days=365 * years), begins_in=timedelta(days=-365 * years))

    expected = x509.load_der_x509_certificate(der)
    assert validity(b"A text before it.\n" + authority.cert.read_bytes()) == (
        expected.not_valid_before_utc.timestamp(),
        expected.not_valid_after_utc.timestamp(),
    )


def test_damage_anywhere_in_a_certificate_is_an_error_and_no_crash(authority: Authority) -> None:
    der = authority.issue()
    for size in range(len(der)):
        damaged = ssl.DER_cert_to_PEM_cert(der[:size]).encode()
        with suppress(UnusableFile):
            validity(damaged)


def test_a_client_that_is_slow_with_the_handshake_is_closed_and_holds_up_nobody(
    authority: Authority, loop_factory
) -> None:
    async def answer(scope, receive, send) -> None:
        await Response("here")(scope, receive, send)

    async def main() -> tuple[bytes, int]:
        config = make_config(answer, lifespan="off")
        listener = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(config, load(authority).context, handshake_timeout_s=3.0)
        serving = asyncio.create_task(server.serve([listener]))
        address = f"https://localhost:{listener.getsockname()[1]}"
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"\x16\x03\x01")  # A handshake begins in this way.
        async with httpx.AsyncClient(verify=authority.trust()) as client:
            status = (await client.get(address)).status_code
        received = await reader.read()  # Returns when the server has closed the connection.
        writer.close()
        server.should_exit = True
        await serving
        return received, status

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == (b"", 200)
