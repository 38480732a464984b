"""Parse the bodies of prediction requests into fields: JSON, a raw file, or a multipart form; each plain or compressed.

These functions may run in a worker process, so they are pickled by name, and this module imports no web framework.
Their work is bounded before it is done, as far as that is possible; the rest is bounded by the worker's processor time.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.engine.request import Body, Parse
from service.errors import BodyTooLarge, InvalidRequest, MalformedBody, TooLarge, UnsupportedMediaType
from tasks.contract import Upload
from tasks.sending_mistakes import explain_binary

T = TypeVar("T")

_MAX_PARTS = 200
"""Maximum number of parts in a form."""
_UTF8_BOM = b"\xef\xbb\xbf"
_GZIP_WINDOW = 31
"""zlib's `wbits` for data with a gzip header and the largest window."""
_FILE_NAME = re.compile(rb";\s*filename\*?\s*=", re.IGNORECASE)
_SEPARATORS = b",[{"
_JSON_TYPES = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a Boolean",
    type(None): "null",
}


def parse_json(body: Body, *, query: Mapping[str, str], max_values: int) -> Mapping[str, Any]:
    """Return the fields of a JSON object and of the query string.

    A body with more than `max_values` values is refused unparsed. Commas and brackets within strings are counted as if
    they separated values, so the limit must leave room for them. Raises ServiceError.
    """
    body = body.removeprefix(_UTF8_BOM)
    if len(body) > max_values and _count_bytes(body, _SEPARATORS) > max_values:
        raise TooLarge(f"The body has more than {max_values:,} JSON values, more than any valid request to this model.")
    try:
        fields = from_json(body)  # Accepts NaN, so that validation can name the field that holds it.
    except ValueError as error:
        raise MalformedBody(f"The body is not valid JSON: {explain_binary(body) or error}.") from None
    if not isinstance(fields, dict):
        raise MalformedBody(f"The body must be a JSON object, not {_JSON_TYPES[type(fields)]}.")
    return merge_query(fields, query)


def parse_upload(body: Body, *, name: str, query: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the body as the field `name`, and the fields of the query string. Raises InvalidRequest."""
    return merge_query({name: bytes(body)}, query)


def parse_form(body: Body, *, boundary: bytes, upload: Upload, query: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the fields of a multipart form (RFC 7578) and of the query string.

    A part with a file name, or with a type that is not text, is a file; only the field of `upload` may be one. If it
    occurs several times, its value is a list. Raises ServiceError.
    """
    collector = _PartCollector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(bytes(body))
        parser.finalize()
    except FormParserError as error:
        raise MalformedBody(f"The body is not a valid multipart form: {error}.") from None
    if not collector.is_complete:
        raise MalformedBody("The multipart form is truncated: its final boundary is missing.")
    name = upload.field
    uploads = [_upload_value(part, upload) for part in collector.parts if part.name == name]
    others = [(part.name, _text_value(part, name)) for part in collector.parts if part.name != name]
    fields: dict[str, Any] = unique_items(others)
    if len(uploads) > 1 and not upload.several:
        raise InvalidRequest(f"{name}: {len(uploads)} were sent in one form; send one per request.")
    if uploads:
        fields[name] = uploads[0] if len(uploads) == 1 else uploads
    return merge_query(fields, query)


def parse_compressed(body: Body, *, parse: Parse, max_bytes: int) -> Mapping[str, Any]:
    """Return the fields of a gzip-compressed body, which `parse` reads once it is decompressed. Raises ServiceError."""
    decompressor = zlib.decompressobj(_GZIP_WINDOW)
    try:
        content = decompressor.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise MalformedBody(f"The body is not valid gzip, contrary to its Content-Encoding: {error}.") from None
    if len(content) > max_bytes:
        raise BodyTooLarge(f"The decompressed body exceeds the limit of {max_bytes:,} bytes.")
    if not decompressor.eof:
        raise MalformedBody("The gzip body is truncated.")
    if decompressor.unused_data:
        raise MalformedBody("The gzip body is followed by other data; send a single gzip member.")
    return parse(content)


def _count_bytes(body: Body, values: bytes) -> int:
    """Return how many bytes of the body have one of these values. Numpy releases the interpreter's lock meanwhile."""
    codes = np.frombuffer(body, np.uint8)
    return sum(int(np.count_nonzero(codes == value)) for value in values)


def unique_items(items: Sequence[tuple[str, T]]) -> dict[str, T]:
    """Return the items as a dict. Raises InvalidRequest for a repeated name, since one value would be ignored."""
    unique: dict[str, T] = {}
    for name, value in items:
        if name in unique:
            raise InvalidRequest(f"{name[:64]}: given more than once.")
        unique[name] = value
    return unique


def merge_query(fields: Mapping[str, Any], query: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the fields of the body and of the query string. Raises InvalidRequest for a name that is in both."""
    if repeated := fields.keys() & query.keys():
        raise InvalidRequest(f"{', '.join(sorted(repeated))}: given in both the body and the query string.")
    return {**fields, **query}


@dataclass
class _Part:
    """A part of a form: its headers, by lower-case name, and its content."""

    headers: dict[str, bytes] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)

    @property
    def name(self) -> str:
        _, parameters = parse_options_header(self.headers.get("content-disposition", b""))
        return parameters.get(b"name", b"").decode("utf-8", "replace")

    @property
    def has_file_name(self) -> bool:
        """Whether there is a file name, also in the extended notation of RFC 5987 (`filename*=utf-8''…`)."""
        return bool(_FILE_NAME.search(self.headers.get("content-disposition", b"")))

    @property
    def is_file(self) -> bool:
        return self.has_file_name or self.media_type != "text/plain"

    @property
    def media_type(self) -> str:
        declared = self.headers.get("content-type", b"text/plain")
        return declared.partition(b";")[0].strip().lower().decode("latin-1")


class _PartCollector:
    """Receives the parser's callbacks, and collects the parts."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.is_complete = False
        self._header_name, self._header_value = bytearray(), bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self.parts[-1].content.extend(data[start:end]),
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        if len(self.parts) >= _MAX_PARTS:
            raise MalformedBody(f"The form has more than {_MAX_PARTS} parts.")
        self.parts.append(_Part())

    def _end_header(self) -> None:
        name = self._header_name.decode("latin-1").lower()
        self.parts[-1].headers[name] = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def _end(self) -> None:
        self.is_complete = True


def _upload_value(part: _Part, upload: Upload) -> str | bytes:
    """Return the content of an upload field: bytes of a file, or text if the part says nothing else and is UTF-8."""
    if "content-type" in part.headers and not upload.has_signature and not upload.accepts(part.media_type):
        raise UnsupportedMediaType(
            f"The file in field '{upload.field}' is declared as '{part.media_type[:80]}'; this model accepts "
            f"{', '.join(upload.media_types)}."
        )
    if part.is_file:
        return bytes(part.content)
    try:
        return part.content.decode("utf-8")
    except UnicodeDecodeError:
        return bytes(part.content)  # Decoding the file goes by its content, and tells what is wrong with a text.


def _text_value(part: _Part, upload_field: str) -> str:
    if not part.name:
        raise MalformedBody("A part of the form has no name in its Content-Disposition.")
    if part.has_file_name:
        raise InvalidRequest(f"The file is in field '{part.name[:64]}'; send it in field '{upload_field}'.")
    try:
        return part.content.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{part.name[:64]}: the text is not UTF-8.") from None
