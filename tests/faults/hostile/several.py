"""Requests with several inputs, each of which is costly."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from tests.faults.hostile.images import encoded, flat_png, progressive_jpeg, run_length_bmp
from tests.faults.hostile.request import HostileRequest, predict
from tests.faults.sample_requests import KnownModel

_COUNT = 16
"""The most inputs that a server accepts in a request by default."""
_CHARACTERS = 100_000
"""The most characters of a text that it accepts."""
_PART = b'--boundary\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


def several_inputs(known: Mapping[str, KnownModel]) -> Iterator[HostileRequest]:
    """Yield the requests with several images or texts."""
    form = "multipart/form-data; boundary=boundary"
    photo = base64.b64decode(known["clothing"].goldens[0].request["image"])
    for name, make in {
        "16 flat PNGs of 49 MP": lambda: [flat_png(7_000)] * _COUNT,
        "16 PNGs of 24 MP with alpha": lambda: [flat_png(4_900, colour=6, row_filter=4)] * _COUNT,
        "16 JPEGs of 26 scans of 49 MP": lambda: [progressive_jpeg(26, 7_000)] * _COUNT,
        "16 progressive CMYK JPEGs of 49 MP": lambda: (
            [encoded("JPEG", 7_000, mode="CMYK", quality=20, progressive=True)] * _COUNT
        ),
        "15 photos and a BMP in run lengths": lambda: (
            [photo] * (_COUNT - 1) + [run_length_bmp(50_000, 500, b"\1\1\0\0" * 500)]
        ),
        "17 photos": lambda: [photo] * (_COUNT + 1),
        "16 empty files": lambda: [b""] * _COUNT,
    }.items():
        yield predict(f"several: {name}", "clothing", form, partial(_form, make))
    yield predict(
        "several: 16 images of 1 MP to restore",
        "restore",
        form,
        partial(_form, lambda: [encoded("JPEG", 1_000, quality=20)] * _COUNT),
    )
    yield predict(
        "several: 16 flat PNGs of 49 MP in JSON",
        "clothing",
        "application/json",
        lambda: json.dumps({"image": [base64.b64encode(flat_png(7_000)).decode()] * _COUNT}).encode(),
    )
    yield from _texts()


def _form(make: Callable[[], Sequence[bytes]]) -> bytes:
    return b"".join(_PART + content + b"\r\n" for content in make()) + b"--boundary--\r\n"


def _texts() -> Iterator[HostileRequest]:
    lists: dict[str, Callable[[], object]] = {
        "16 texts of 100,000 characters": lambda: ["aabb" * (_CHARACTERS // 4)] * _COUNT,
        "16 texts of 100,000 characters in words": lambda: ["a film " * (_CHARACTERS // 7)] * _COUNT,
        "16 letters with 96,000 combining marks": lambda: ["a" + "\u0316\u0301\u0327\u031b" * 24_000] * _COUNT,
        "16 texts whose letters become 18 each": lambda: ["\ufdfa" * 5_500] * _COUNT,
        "a million empty texts": lambda: [""] * 1_000_000,
        "lists within lists": lambda: [[["a"]]] * _COUNT,
        "16 numbers": lambda: list(range(_COUNT)),
        "no texts": list,
    }
    for name, make in lists.items():
        yield predict(f"several: {name}", "imdb", "application/json", partial(_json_of_texts, make))


def _json_of_texts(make: Callable[[], object]) -> bytes:
    return json.dumps({"text": make()}, ensure_ascii=False).encode()
