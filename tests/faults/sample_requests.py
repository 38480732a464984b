"""What is sent: requests to the shipped models, as many different ones as are wanted, good and poisonous.

Each is of its own seed, so that a run can be repeated; each good one has samples of its own, by whose digest a faulty
runtime knows it.
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

from loadtests.clients import Leaving, Reply, one_by_one
from tasks.contract import Limits, Task
from tasks.goldens import Golden, difference, read_goldens
from tasks.manifest import MODEL, Manifest, read_manifest
from tests.faults.faulty_backend import sample_digest

_SIDE = 240
"""Pixels: about what a picture has that clients send; larger ones only cost more to decode."""
_FILE = {"text": "text/plain", "image": "image/jpeg"}


@dataclass(frozen=True)
class Sent:
    """One request: to which model, its bytes, and its body as it would be in JSON.

    Attributes:
        expected: the answer's body when it was asked alone.
    """

    model: "Known"
    request: bytes
    fields: Mapping[str, Any]
    expected: bytes = b""

    @cached_property
    def digests(self) -> list[str]:
        """The names of its samples."""
        task = self.model.task
        arrays = task.preprocess(task.decode(task.parse(dict(self.fields), Limits()), Limits())).arrays
        return [sample_digest(arrays, i) for i in range(len(next(iter(arrays.values()))))]

    def wrong(self, reply: Reply) -> str | None:
        """Why this reply is not the answer that it got alone, within the model's tolerance; None where it is."""
        if reply.status != 200:
            return f"{self.model.name}: status {reply.status}: {reply.body[:200]!r}"
        if reply.body == self.expected:
            return None
        found = difference(json.loads(self.expected), json.loads(reply.body), self.model.manifest.golden_tolerance)
        return found and f"{self.model.name}: {found}"


@dataclass(frozen=True)
class Poison:
    """A request that has to fail, and how; with `leaving` its client goes, and there is no answer to it."""

    kind: str
    request: bytes
    status: int = 0
    code: str = ""
    leaving: Leaving | None = None

    def wrong(self, reply: Reply) -> str | None:
        """Why this is not how it was to end; None where it is."""
        if self.leaving is not None:
            return None
        code = json.loads(reply.body)["error"]["code"] if reply.status >= 400 else ""
        if (reply.status, code) == (self.status, self.code):
            return None
        return f"{self.kind}: {reply.status} {code}, not {self.status} {self.code}"


@dataclass(frozen=True)
class Known:
    """A shipped model, as its clients know it."""

    folder: Path
    manifest: Manifest
    task: Task
    goldens: tuple[Golden, ...]

    @property
    def name(self) -> str:
        """Its name in the address."""
        return self.manifest.name

    @property
    def graph(self) -> bytes:
        """The file of its graph."""
        return (self.folder / MODEL).read_bytes()

    def request(self, content_type: str, body: bytes, **headers: str) -> bytes:
        """The bytes of a request to it."""
        return http_request(f"/v1/models/{self.name}/predict", content_type, body, **headers)

    def send(self, fields: Mapping[str, Any], **headers: str) -> Sent:
        """A request with this body: a file as it is where the body is but a file, else JSON."""
        upload = self.task.upload
        if upload is None or set(fields) != {upload.field}:
            return Sent(self, self.request("application/json", json.dumps(fields).encode(), **headers), fields)
        content = fields[upload.field]
        body = base64.b64decode(content) if upload.field == "image" else content.encode()
        return Sent(self, self.request(_FILE[upload.field], body, **headers), fields)

    def good(self, seed: int, *, size: int = 0, **headers: str) -> Sent:
        """A request like the first golden one, and different for each seed.

        `size` is what makes it large: rows of a table, words of a text, the side length of a picture.
        """
        chance = random.Random(f"{self.name} {seed}")
        make = {"tabular": self._table, "sentiment": self._text, "recommendations": self._ratings}
        return self.send(make.get(self.manifest.task, self._picture)(chance, size), **headers)

    def _table(self, chance: random.Random, size: int) -> dict[str, Any]:
        row = self.goldens[0].request["rows"][0]
        column = next(c for c in self.manifest.parameters["columns"] if c["kind"] == "number")
        return {
            "rows": [
                row | {column["name"]: round(chance.uniform(column["low"], column["high"]), 5)}
                for _ in range(size or 1)
            ]
        }

    def _text(self, chance: random.Random, size: int) -> dict[str, Any]:
        words = " ".join(golden.request["text"] for golden in self.goldens).replace(".", "").split()
        return {"text": " ".join(chance.choice(words) for _ in range(size or 20))}

    def _ratings(self, chance: random.Random, size: int) -> dict[str, Any]:
        items = json.loads((self.folder / "items.json").read_text("utf-8"))["ids"]
        return {"ratings": [{"item": item, "rating": 4.0} for item in chance.sample(items, size or 4)], "k": 5}

    def _picture(self, chance: random.Random, size: int) -> dict[str, Any]:
        golden = Image.open(io.BytesIO(base64.b64decode(self.goldens[0].request["image"]))).convert("RGB")
        side = size or min(_SIDE, max(golden.size))
        image = golden.resize((side, side), Image.Resampling.BILINEAR)
        pen = ImageDraw.Draw(image)
        for _ in range(6):
            left, top = chance.randrange(side * 3 // 4), chance.randrange(side * 3 // 4)
            box = (left, top, left + side // 4, top + side // 4)
            pen.rectangle(box, fill=(chance.randrange(256), chance.randrange(256), chance.randrange(256)))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        return {"image": base64.b64encode(file.getvalue()).decode("ascii")}


def http_request(path: str, content_type: str, body: bytes, **headers: str) -> bytes:
    """The bytes of a POST; a header's underscores become hyphens."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def known_models(models: Path) -> dict[str, Known]:
    """The newest version of each model in the folder."""
    found = {}
    for home in sorted(path for path in models.iterdir() if path.is_dir()):
        folder = max((path for path in home.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
        manifest = read_manifest(folder)
        found[home.name] = Known(folder, manifest, manifest.load_task(folder), read_goldens(folder))
    return found


def asked_alone(port: int, sent: Sequence[Sent]) -> list[Sent]:
    """The requests, each with the answer it gets where nobody else asks. Raises RuntimeError where it gets none."""
    replies = one_by_one(port, [one.request for one in sent])
    for one, reply in zip(sent, replies, strict=True):
        if reply.status != 200:
            raise RuntimeError(f"A good request to {one.model.name} got {reply.status}: {reply.body[:300]!r}")
    return [replace(one, expected=reply.body) for one, reply in zip(sent, replies, strict=True)]


def poisons(models: Mapping[str, Known]) -> Iterator[Poison]:
    """Every way of being poisonous that needs no fault of the runtime."""
    for name in ("clothing", "faces", "restore"):
        yield from _poisonous_pictures(models[name])
    for name in ("adult", "bikes"):
        yield from _poisonous_tables(models[name])
    text = models["imdb"]
    yield Poison("no UTF-8", text.request("text/plain", b"a film \xff\xfe"), 422, "invalid_request")
    yield Poison("an empty text", text.request("text/plain", b"   "), 422, "unreadable_input")
    yield Poison("a text too long", text.request("text/plain", b"word " * 20_001), 413, "input_too_large")
    films = models["movielens"]
    yield Poison("too many", _json(films, {"ratings": [], "k": 10**9}), 422, "invalid_request")


def _poisonous_pictures(model: Known) -> Iterator[Poison]:
    whole = base64.b64decode(model.good(0).fields["image"])
    yield Poison(
        "a corrupt picture", model.request("image/jpeg", b"\xff\xd8" + b"noise" * 200), 422, "unreadable_input"
    )
    yield Poison("a truncated picture", model.request("image/jpeg", whole[: len(whole) // 2]), 422, "unreadable_input")
    yield Poison("a decompression bomb", model.request("image/png", _bomb()), 413, "input_too_large")
    yield Poison("an empty body", model.request("image/jpeg", b""), 400, "empty_body")
    yield Poison("a wrong kind", model.request("video/mp4", whole), 415, "unsupported_media_type")
    large = model.request("image/jpeg", b"").replace(b"Content-Length: 0", b"Content-Length: 900000000")
    yield Poison("too many bytes", large, 413, "body_too_large")
    yield Poison("not base64", _json(model, {"image": "?!"}), 422, "invalid_request")


def _poisonous_tables(model: Known) -> Iterator[Poison]:
    row = model.goldens[0].request["rows"][0]
    column = next(c["name"] for c in model.manifest.parameters["columns"] if c["kind"] == "number")
    yield Poison("NaN", _json(model, {"rows": [row | {column: float("nan")}]}), 422, "invalid_request")
    yield Poison("a wrong type", _json(model, {"rows": [row | {column: [1]}]}), 422, "invalid_request")
    yield Poison("an unknown field", _json(model, {"rows": [row | {"surprise": 1}]}), 422, "invalid_request")
    yield Poison("too many rows", _json(model, {"rows": [row] * 1_001}), 413, "input_too_large")
    yield Poison("no JSON", model.request("application/json", b'{"rows": [{'), 400, "malformed_body")
    yield Poison("an array", model.request("application/json", b"[1, 2]"), 400, "malformed_body")


def leavers(sent: Sequence[Sent]) -> Iterator[Poison]:
    """The requests again, of clients that go: with half the head sent, with half the body, and while they wait."""
    for one in sent:
        head = one.request.index(b"\r\n\r\n") + 4
        middle = head + (len(one.request) - head) // 2
        yield Poison("gone in the head", one.request, leaving=Leaving(head // 2))
        yield Poison("gone before the body", one.request, leaving=Leaving(head, 0.002))
        yield Poison("gone in the body", one.request, leaving=Leaving(middle, 0.002))
        for after_s in (0.0, 0.002, 0.01, 0.05):
            yield Poison("gone while it waits", one.request, leaving=Leaving(None, after_s))
        yield Poison("gone at the answer", one.request, leaving=Leaving(on_answer=True))


def _json(model: Known, fields: Mapping[str, Any]) -> bytes:
    return model.request("application/json", json.dumps(fields).encode())


def _bomb() -> bytes:
    """A PNG of a few bytes whose head announces 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )
