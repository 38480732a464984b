"""Multipart forms that cost far more to parse than their size."""

from collections.abc import Callable, Iterator

from tests.faults.hostile.images import flat_png
from tests.faults.hostile.request import BODY_BYTES, HostileRequest, predict

_BOUNDARY = "boundary"
_START, _END = b"--boundary\r\n", b"\r\n--boundary--\r\n"
_FILE = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'


def forms() -> Iterator[HostileRequest]:
    """Yield the requests with multipart forms."""
    for name, make in _BODIES.items():
        yield predict(f"form: {name}", "clothing", f"multipart/form-data; boundary={_BOUNDARY}", make)
    for name, content_type in _CONTENT_TYPES.items():
        yield predict(f"form: {name}", "clothing", content_type, lambda: _START + _FILE + flat_png(64) + _END)
    yield predict(
        "form: a boundary of one letter in 19 MB of it", "clothing", "multipart/form-data; boundary=a", _short_boundary
    )


def _part(name: bytes, content: bytes = b"") -> bytes:
    return b'\r\n--boundary\r\nContent-Disposition: form-data; name="' + name + b'"\r\n\r\n' + content


def _form(*parts: bytes) -> bytes:
    return b"".join(parts)[2:] + _END


def _image(content: bytes) -> bytes:
    return _START + _FILE + content + _END


_BODIES: dict[str, Callable[[], bytes]] = {
    "280,000 parts": lambda: _form(_part(b"a") * (BODY_BYTES // 70)),
    "100 parts of 90 kB": lambda: _form(*(_part(b"a%d" % i, b"x" * 90_000) for i in range(100))),
    "1,000 pictures": lambda: _form(*[b"\r\n" + _START + _FILE + flat_png(64)] * 1_000),
    "180,000 empty pictures": lambda: _form((b"\r\n" + _START + _FILE) * (BODY_BYTES // 110)),
    "beginnings of its boundary": lambda: _image(b"\r\n--boundarX" * (BODY_BYTES // 13)),
    "line breaks that begin a boundary": lambda: _image(b"\r" * BODY_BYTES),
    "line breaks and hyphens": lambda: _image(b"\r\n--" * (BODY_BYTES // 4)),
    "19 MB before its first part": lambda: b"x" * BODY_BYTES + b"\r\n" + _image(flat_png(64)),
    "19 MB of line breaks before its first part": lambda: b"\r\n" * (BODY_BYTES // 2) + _image(flat_png(64)),
    "19 MB after its last part": lambda: _image(flat_png(64)) + b"x" * BODY_BYTES + b"--",
    "19 MB of line breaks after its last part": lambda: _image(flat_png(64)) + b"\r\n" * (BODY_BYTES // 2) + b"--",
    "a header of 19 MB": lambda: _START + b"X: " + b"x" * BODY_BYTES + b"\r\n" + _FILE + _END,
    "a name of a header of 19 MB": lambda: _START + b"X" * BODY_BYTES + b": x\r\n" + _FILE + _END,
    "3 million headers": lambda: _START + b"X: x\r\n" * (BODY_BYTES // 6) + _FILE + _END,
    "a file name of 19 MB": lambda: _START + _FILE.replace(b"a.png", b"a" * BODY_BYTES) + _END,
    "a field's name of 19 MB": lambda: _START + _FILE.replace(b"image", b"a" * BODY_BYTES, 1) + _END,
    "a disposition of 19 MB of semicolons": lambda: (
        _START + _FILE.replace(b"form-data;", b"form-data" + b";" * BODY_BYTES) + _END
    ),
    "a disposition of backslashes": lambda: _START + _FILE.replace(b"a.png", b"\\" * BODY_BYTES) + _END,
    "an encoded file name of 19 MB": lambda: (
        _START + _FILE.replace(b'filename="a.png"', b"filename*=UTF-8''" + b"%41" * (BODY_BYTES // 3)) + _END
    ),
    "400,000 continued file names": lambda: (
        _START + _FILE.replace(b'filename="a.png"', b"; ".join(b'filename*%d="a"' % i for i in range(400_000))) + _END
    ),
    "a form within a form": lambda: (
        _START + b"Content-Type: multipart/mixed; boundary=boundarx\r\n" + (b"--boundarx\r\n" * 700_000) + _END
    ),
    "a transfer encoding of base64": lambda: (
        _START + b"Content-Transfer-Encoding: base64\r\n" + _FILE + b"A" * BODY_BYTES + _END
    ),
    "no end": lambda: _START + _FILE + b"x" * BODY_BYTES,
    "no parts": _END.lstrip,
    "closing boundaries": lambda: _image(flat_png(64)) + b"--boundary--\r\n" * (BODY_BYTES // 14),
    "an image in 100 fields of text": lambda: _form(*(_part(b"image", b"A" * 90_000) for _ in range(100))),
    "options without end": lambda: _form(*(_part(b"timeout_ms", b"9" * 90_000) for _ in range(100))),
}
_CONTENT_TYPES: dict[str, str] = {
    "a boundary of 60 kB": "multipart/form-data; boundary=" + "b" * 60_000,
    "a boundary of backslashes": 'multipart/form-data; boundary="' + "\\" * 60_000,
    "20,000 parameters": "multipart/form-data" + "; a=b" * 12_000 + "; boundary=boundary",
    "a boundary 5,000 times": "multipart/form-data" + "; boundary=boundary" * 3_000,
    "a boundary that is continued": "multipart/form-data" + "".join(f"; boundary*{i}=b" for i in range(3_500)),
    "no boundary": "multipart/form-data",
    "an empty boundary": 'multipart/form-data; boundary=""',
}


def _short_boundary() -> bytes:
    return b"--a\r\n" + _FILE + b"\r\n--b" * (BODY_BYTES // 5) + b"\r\n--a--"
