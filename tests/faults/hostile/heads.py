"""Requests whose cost is in their head, in the way they are sent, or in what they ask for."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from loadtests.clients import HangUp, prepare_request
from tests.faults.hostile.bombs import bomb
from tests.faults.hostile.request import HostileRequest, get, may_close, predict
from tests.faults.sample_requests import KnownModel

_PREDICT = "/v1/models/adult/predict"


def heads(known: Mapping[str, KnownModel]) -> Iterator[HostileRequest]:
    """Yield the requests with hostile heads, encodings and ways of sending."""
    row = json.dumps(known["adult"].goldens[0].request).encode()
    yield from _queries(row)
    yield from _headers(row)
    yield from _compressed(row)
    yield from _paths()
    yield from _senders(row)


def _queries(row: bytes) -> Iterator[HostileRequest]:
    queries = {
        "4,000 names": "&".join(f"name{i}" for i in range(4_000)),
        "4,000 names, the last of them twice": "&".join(f"name{i}" for i in (*range(4_000), 3_999)),
        "4,000 names with values": "&".join(f"n{i}=1" for i in range(4_000)),
        "one name 15,000 times": "a=b&" * 15_000,
        "30,000 separators": "&" * 30_000,
        "20,000 escapes": "a=" + "%41" * 19_000,
        "escapes of half characters": "a=" + "%C3" * 19_000,
        "a name of 55 kB": "a" * 55_000 + "=1",
        "one number of 50,000 digits": "timeout_ms=" + "9" * 50_000,
        "plus signs": "a=" + "+" * 55_000,
    }
    for name, query in queries.items():
        path = f"{_PREDICT}?{query}"
        yield may_close(HostileRequest(f"query: {name}", partial(prepare_request, path, "application/json", row)))
    yield get("query: 4,000 names for a list of models", f"/v1/models?{queries['4,000 names']}")


def _headers(row: bytes) -> Iterator[HostileRequest]:
    lines: dict[str, list[bytes]] = {
        "5,000 lines": [b"X%d: 1" % i for i in range(4_500)],
        "5,000 equal lines": [b"X: 1"] * 5_000,
        "5,000 lines of Accept": [b"Accept: a/b"] * 4_000,
        "an Accept of 10,000 media types": [b"Accept: " + b"a/b," * 14_000],
        "an Accept of 10,000 parameters": [b"Accept: a/b" + b";a=b" * 14_000],
        "a quality of 50,000 digits": [b"Accept: */*;q=0." + b"1" * 50_000],
        "a time limit of 50,000 digits": [b"X-Request-Timeout-Ms: " + b"9" * 50_000],
        "a time limit that is no number": [b"X-Request-Timeout-Ms: 1e999"],
        "a priority of 50 kB": [b"X-Request-Priority: " + b"h" * 50_000],
        "a request id of 60 kB": [b"X-Request-Id: " + b"i" * 55_000],
        "a request id of line feeds": [b"X-Request-Id: a\tb" + b"\x80" * 1_000],
        "a cookie of 60 kB": [b"Cookie: " + b"a=b; " * 11_000],
        "a range": [b"Range: bytes=" + b"0-1," * 14_000],
        "5,000 proxies": [b"X-Forwarded-For: " + b"1.1.1.1, " * 6_000],
        "an Expect that nobody knows": [b"Expect: 200-ok"],
        "an upgrade to HTTP/2": [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"],
        "an upgrade to a WebSocket": [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x"],
        "more than 64 kB": [b"X: " + b"x" * 200_000],
        "two lengths": [b"Content-Length: 1"],
        "a length and chunks": [b"Transfer-Encoding: chunked"],
        "a folded line": [b"X: a\r\n b"],
        "a NUL": [b"X: \0"],
    }
    for name, further in lines.items():
        yield may_close(HostileRequest(f"head: {name}", partial(_post, row, *further)))
    charset = "text/plain; charset=" + "u" * 55_000
    yield may_close(predict("head: a charset of 55 kB", "imdb", charset, lambda: b"good"))
    spaces = "text/plain;" + " " * 55_000 + "charset"
    yield may_close(predict("head: a charset after 55,000 spaces", "imdb", spaces, lambda: b"good"))
    semicolons = "text/plain" + "; " * 27_000 + "charset"
    yield may_close(predict("head: a charset after 27,000 semicolons", "imdb", semicolons, lambda: b"good"))


def _post(body: bytes, *lines: bytes, path: str = _PREDICT) -> bytes:
    head = [b"POST " + path.encode() + b" HTTP/1.1", b"Host: x", b"Content-Type: application/json"]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), *lines, b"", b""]) + body


def _compressed(row: bytes) -> Iterator[HostileRequest]:
    bodies: dict[str, tuple[bytes, Callable[[], bytes]]] = {
        "gzip of 1 GB of zeros": (b"gzip", lambda: bomb(1_000, gzip=True)),
        "gzip of 9 GB of spaces before a row": (b"gzip", lambda: bomb(9_000, byte=b" ", gzip=True)),
        "gzip of 400,000 empty members": (b"gzip", lambda: gzip.compress(b"") * 400_000 + gzip.compress(row)),
        "gzip with a comment of 19 MB": (b"gzip", lambda: b"\x1f\x8b\x08\x10" + bytes(6) + b"c" * 19_000_000),
        "gzip of 4 million empty blocks": (
            b"gzip",
            lambda: b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\0\0\0\xff\xff" * 3_800_000,
        ),
        "gzip within gzip within gzip": (
            b"gzip, gzip, gzip",
            lambda: gzip.compress(gzip.compress(bomb(1_000, gzip=True))),
        ),
        "gzip a thousand times": (b", ".join([b"gzip"] * 1_000), lambda: gzip.compress(row)),
        "gzip that is cut off": (b"gzip", lambda: gzip.compress(row)[:-4]),
        "gzip that is none": (b"gzip", lambda: b"x" * 9_000_000),
        "deflate of 1 GB of zeros": (b"deflate", lambda: bomb(1_000)),
        "an encoding that nobody knows": (b"x-" + b"e" * 50_000, lambda: row),
        "brotli": (b"br", lambda: bytes(19_000_000)),
    }
    for name, (encoding, make) in bodies.items():

        def compressed(make: Callable[[], bytes] = make, encoding: bytes = encoding) -> bytes:
            return _post(make(), b"Content-Encoding: " + encoding)

        yield HostileRequest(f"compressed: {name}", compressed)
    image = b"Content-Encoding: gzip"
    yield HostileRequest(
        "compressed: an image of 1 GB of zeros",
        lambda: _post(bomb(1_000, gzip=True), image, path="/v1/models/clothing/predict").replace(
            b"application/json", b"image/png", 1
        ),
    )


def _paths() -> Iterator[HostileRequest]:
    for path in ("/openapi.json", "/docs", "/metrics", "/v1/models", "/v1/models/clothing", "/health/ready"):
        yield get(f"path: {path}", path)
    yield HostileRequest(
        "path: /openapi.json fifty times on one connection",
        lambda: b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
    )
    yield HostileRequest(
        "path: /v1/models five thousand times on one connection",
        lambda: b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 5_000,
    )
    yield may_close(get("path: a model with a name of 50 kB", f"/v1/models/{'m' * 50_000}/predict", refused=True))
    yield may_close(get("path: 25,000 folders", "/a" * 25_000, refused=True))
    yield may_close(get("path: 16,000 escapes", "/" + "%2e" * 16_000, refused=True))
    yield may_close(get("path: 16,000 escaped slashes", "/v1/models" + "%2f" * 16_000))
    yield may_close(
        get("path: an unknown version of 50 kB", f"/v1/models/adult/versions/{'1' * 50_000}/predict", refused=True)
    )


def _senders(row: bytes) -> Iterator[HostileRequest]:
    upload = b"POST /v1/models/clothing/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    chunked = upload + b"Transfer-Encoding: chunked\r\n\r\n"
    table = chunked.replace(b"clothing", b"adult").replace(b"image/png", b"application/json")
    yield HostileRequest(
        "sent: 3 million chunks of one byte", lambda: chunked + b"1\r\na\r\n" * 3_000_000 + b"0\r\n\r\n"
    )
    yield HostileRequest(
        "sent: 300,000 chunks of one byte of JSON", lambda: table + b"1\r\n \r\n" * 300_000 + b"0\r\n\r\n"
    )
    yield may_close(
        HostileRequest(
            "sent: a chunk's extension of 9 MB", lambda: chunked + b"1;" + b"x" * 9_000_000 + b"\r\na\r\n0\r\n\r\n"
        )
    )
    yield may_close(
        HostileRequest("sent: 1 MB of trailers", lambda: chunked + b"1\r\na\r\n0\r\n" + b"X: x\r\n" * 170_000 + b"\r\n")
    )
    yield may_close(
        HostileRequest(
            "sent: a chunk of 2⁶⁴ bytes",
            lambda: chunked + b"ffffffffffffffff\r\n" + b"a" * 1_000_000,
            hang_up=HangUp(None, 1.0),
        )
    )
    yield HostileRequest("sent: half a body, then nothing", lambda: _post(row), hang_up=HangUp(200, 1.0))
    yield HostileRequest("sent: half a head, then nothing", lambda: _post(row), hang_up=HangUp(40, 1.0))
    yield HostileRequest(
        "sent: a large upload that is broken off",
        lambda: upload + b"Content-Length: 9500000\r\n\r\n" + bytes(9_000_000),
        hang_up=HangUp(None, 0.05),
    )
    yield HostileRequest(
        "sent: an upload that is longer than it says", lambda: _post(row) + b"x" * 1_000_000, may_close=True
    )
    yield may_close(HostileRequest("sent: 9 MB that are no HTTP", lambda: b"\xff" * 9_000_000))
    yield may_close(HostileRequest("sent: 9 MB of line breaks", lambda: b"\r\n" * 4_500_000))
    yield may_close(HostileRequest("sent: TLS", lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)))
