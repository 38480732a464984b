"""The requests that are sent: any number of different ones to the shipped models, valid and faulty.

Each is made from a seed, so that a run can be repeated. Each valid request has samples of its own, whose digests let
the faulty backend recognise it.
"""

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from loadtests.clients import HangUp, Reply, prepare_request, send_sequentially
from tasks.contract import Limits, Task, count_samples
from tasks.goldens import Golden, first_difference, read_goldens
from tasks.manifest import MODEL, Manifest, read_manifest
from tests.faults.faulty_backend import sample_digest

_IMAGE_SIZE = 240
"""The usual side length in pixels; larger images would only cost more to decode."""
_UPLOAD_TYPES = {"text": "text/plain", "image": "image/jpeg"}


@dataclass(frozen=True)
class ValidRequest:
    """A request to a model.

    Attributes:
        fields: the body as it would be in JSON.
        expected: the body of the response on an idle server.
    """

    model: "KnownModel"
    request: bytes
    fields: Mapping[str, Any]
    expected: bytes = b""

    @cached_property
    def digests(self) -> list[str]:
        """The digests of its samples."""
        task = self.model.task
        arrays = task.preprocess(task.decode(task.parse(dict(self.fields), Limits()), Limits())).arrays
        return [sample_digest(arrays, i) for i in range(count_samples(arrays))]

    def problem(self, reply: Reply) -> str | None:
        """Return why the reply differs from the one on an idle server by more than the model's tolerance, or None."""
        if reply.status != 200:
            return f"{self.model.name}: status {reply.status}: {reply.body[:200]!r}"
        if reply.body == self.expected:
            return None
        tolerance = self.model.manifest.golden_tolerance
        deviation = first_difference(json.loads(self.expected), json.loads(reply.body), tolerance)
        return deviation and f"{self.model.name}: {deviation}"


@dataclass(frozen=True)
class FaultyRequest:
    """A request that has to fail with this status and error code; with `hang_up` no response is expected."""

    kind: str
    request: bytes
    status: int = 0
    code: str = ""
    hang_up: HangUp | None = None

    def problem(self, reply: Reply) -> str | None:
        """Return why the reply is not the expected error, or None."""
        if self.hang_up is not None:
            return None
        code = json.loads(reply.body)["error"]["code"] if reply.status >= 400 else ""
        if (reply.status, code) == (self.status, self.code):
            return None
        return f"{self.kind}: {reply.status} {code}, not {self.status} {self.code}"


@dataclass(frozen=True)
class KnownModel:
    """A shipped model as its clients know it."""

    folder: Path
    manifest: Manifest
    task: Task
    goldens: tuple[Golden, ...]

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def graph(self) -> bytes:
        """The content of the graph's file."""
        return (self.folder / MODEL).read_bytes()

    def request(self, content_type: str, body: bytes, **headers: str) -> bytes:
        """Return the bytes of a request to this model."""
        return prepare_request(f"/v1/models/{self.name}/predict", content_type, body, **headers)

    def request_from(self, fields: Mapping[str, Any], **headers: str) -> ValidRequest:
        """Make a request from JSON fields; it is sent as an upload if the only field is a file."""
        upload = self.task.upload
        if upload is None or set(fields) != {upload.field} or not isinstance(fields[upload.field], str):
            return ValidRequest(self, self.request("application/json", json.dumps(fields).encode(), **headers), fields)
        content = fields[upload.field]
        body = base64.b64decode(content) if upload.field == "image" else content.encode()
        return ValidRequest(self, self.request(_UPLOAD_TYPES[upload.field], body, **headers), fields)

    def valid_request(self, seed: int, *, size: int = 0, **headers: str) -> ValidRequest:
        """Make a request like the first golden one, different for each seed.

        `size` is the number of rows of a table, the number of words of a text, or the side length of an image.
        """
        rng = random.Random(f"{self.name} {seed}")
        make = {"tabular": self._table, "sentiment": self._text, "recommendations": self._ratings}
        return self.request_from(make.get(self.manifest.task, self._image)(rng, size), **headers)

    def _table(self, rng: random.Random, size: int) -> dict[str, Any]:
        row = self.goldens[0].request["rows"][0]
        column = next(c for c in self.manifest.parameters["columns"] if c["kind"] == "number")
        return {
            "rows": [
                row | {column["name"]: round(rng.uniform(column["low"], column["high"]), 5)} for _ in range(size or 1)
            ]
        }

    def _text(self, rng: random.Random, size: int) -> dict[str, Any]:
        words = " ".join(golden.request["text"] for golden in self.goldens).replace(".", "").split()
        return {"text": " ".join(rng.choice(words) for _ in range(size or 20))}

    def _ratings(self, rng: random.Random, size: int) -> dict[str, Any]:
        items = json.loads((self.folder / "items.json").read_text("utf-8"))["ids"]
        return {"ratings": [{"item": item, "rating": 4.0} for item in rng.sample(items, size or 4)], "k": 5}

    def _image(self, rng: random.Random, size: int) -> dict[str, Any]:
        golden = Image.open(io.BytesIO(base64.b64decode(self.goldens[0].request["image"]))).convert("RGB")
        side = size or min(_IMAGE_SIZE, max(golden.size))
        image = golden.resize((side, side), Image.Resampling.BILINEAR)
        draw = ImageDraw.Draw(image)
        for _ in range(6):
            left, top = rng.randrange(side * 3 // 4), rng.randrange(side * 3 // 4)
            box = (left, top, left + side // 4, top + side // 4)
            draw.rectangle(box, fill=(rng.randrange(256), rng.randrange(256), rng.randrange(256)))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        return {"image": base64.b64encode(file.getvalue()).decode("ascii")}


def known_models(models: Path) -> dict[str, KnownModel]:
    """Read the newest version of each model in the folder."""
    known = {}
    for model in sorted(path for path in models.iterdir() if path.is_dir()):
        folder = max((path for path in model.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
        manifest = read_manifest(folder)
        known[model.name] = KnownModel(folder, manifest, manifest.load_task(folder), read_goldens(folder))
    return known


def with_expected(port: int, requests: Sequence[ValidRequest]) -> list[ValidRequest]:
    """Return the requests with the responses of the idle server. Raises RuntimeError if one fails."""
    replies = send_sequentially(port, [request.request for request in requests])
    for request, reply in zip(requests, replies, strict=True):
        if reply.status != 200:
            raise RuntimeError(f"A valid request to {request.model.name} got {reply.status}: {reply.body[:300]!r}")
    return [replace(request, expected=reply.body) for request, reply in zip(requests, replies, strict=True)]


def faulty_requests(models: Mapping[str, KnownModel]) -> Iterator[FaultyRequest]:
    """Make every kind of faulty request that needs no fault of the backend."""
    for name in ("clothing", "faces", "restore"):
        yield from _faulty_images(models[name])
    for name in ("adult", "bikes"):
        yield from _faulty_tables(models[name])
    text = models["imdb"]
    yield FaultyRequest("not UTF-8", text.request("text/plain", b"a film \xff\xfe"), 422, "invalid_request")
    yield FaultyRequest("an empty text", text.request("text/plain", b"   "), 422, "unreadable_input")
    yield FaultyRequest("a text too long", text.request("text/plain", b"word " * 20_001), 413, "input_too_large")
    films = models["movielens"]
    yield FaultyRequest("k too large", _json_request(films, {"ratings": [], "k": 10**9}), 422, "invalid_request")


def _faulty_images(model: KnownModel) -> Iterator[FaultyRequest]:
    image = base64.b64decode(model.valid_request(0).fields["image"])
    corrupt = model.request("image/jpeg", b"\xff\xd8" + b"noise" * 200)
    yield FaultyRequest("a corrupt image", corrupt, 422, "unreadable_input")
    truncated = model.request("image/jpeg", image[: len(image) // 2])
    yield FaultyRequest("a truncated image", truncated, 422, "unreadable_input")
    bomb = model.request("image/png", _decompression_bomb())
    yield FaultyRequest("a decompression bomb", bomb, 413, "input_too_large")
    yield FaultyRequest("an empty body", model.request("image/jpeg", b""), 400, "empty_body")
    yield FaultyRequest("a wrong media type", model.request("video/mp4", image), 415, "unsupported_media_type")
    large = model.request("image/jpeg", b"").replace(b"Content-Length: 0", b"Content-Length: 900000000")
    yield FaultyRequest("a body too large", large, 413, "body_too_large")
    yield FaultyRequest("not base64", _json_request(model, {"image": "?!"}), 422, "invalid_request")


def _faulty_tables(model: KnownModel) -> Iterator[FaultyRequest]:
    row = model.goldens[0].request["rows"][0]
    column = next(c["name"] for c in model.manifest.parameters["columns"] if c["kind"] == "number")
    nan, wrong_type, unknown = row | {column: float("nan")}, row | {column: [1]}, row | {"surprise": 1}
    yield FaultyRequest("NaN", _json_request(model, {"rows": [nan]}), 422, "invalid_request")
    yield FaultyRequest("a wrong type", _json_request(model, {"rows": [wrong_type]}), 422, "invalid_request")
    yield FaultyRequest("an unknown field", _json_request(model, {"rows": [unknown]}), 422, "invalid_request")
    yield FaultyRequest("too many rows", _json_request(model, {"rows": [row] * 1_001}), 413, "input_too_large")
    yield FaultyRequest("not JSON", model.request("application/json", b'{"rows": [{'), 400, "malformed_body")
    yield FaultyRequest("a JSON array", model.request("application/json", b"[1, 2]"), 400, "malformed_body")


def disconnecting_requests(requests: Sequence[ValidRequest]) -> Iterator[FaultyRequest]:
    """Make requests whose clients hang up: in the head, in the body, while they wait, and at the response."""
    for request in requests:
        content, head = request.request, request.request.index(b"\r\n\r\n") + 4
        middle = head + (len(content) - head) // 2
        yield FaultyRequest("disconnect in the head", content, hang_up=HangUp(head // 2))
        yield FaultyRequest("disconnect before the body", content, hang_up=HangUp(head, 0.002))
        yield FaultyRequest("disconnect in the body", content, hang_up=HangUp(middle, 0.002))
        for after_s in (0.0, 0.002, 0.01, 0.05):
            yield FaultyRequest("disconnect while waiting", content, hang_up=HangUp(None, after_s))
        yield FaultyRequest("disconnect at the response", content, hang_up=HangUp(on_response=True))


def _json_request(model: KnownModel, fields: Mapping[str, Any]) -> bytes:
    return model.request("application/json", json.dumps(fields).encode())


def _decompression_bomb() -> bytes:
    """Return a small PNG whose header announces 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
