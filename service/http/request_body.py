"""Read the body of a prediction request from the network, and choose how it is to be parsed later.

Nothing here depends on the content of the body: `service/decoding/body_formats.py` parses it, in a thread or a process.
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.decoding.body_formats import parse_compressed, parse_form, parse_json, parse_upload, unique_items
from service.engine.admission import OPTION_FIELDS, RequestOptions, parse_options
from service.engine.request import Body, Parse
from service.errors import (
    BodyTooLarge,
    EmptyBody,
    InvalidHeader,
    InvalidRequest,
    MalformedBody,
    Overloaded,
    UnsupportedMediaType,
)
from tasks.contract import Upload

_JSON, _FORM = "application/json", "multipart/form-data"
_PLAIN_JSON = _JSON.encode()
_HEADERS_KEY = "sevenfold.headers"
_CURL_DEFAULT = "application/x-www-form-urlencoded"
"""What curl sends with --data or --data-binary if no Content-Type is given."""
_MAX_QUERY_BYTES, _MAX_QUERY_FIELDS = 8_192, 50
_MAX_CONTENT_TYPE = 1_000
"""Characters of a Content-Type: parsing one of 60,000 takes 15 ms."""


class BodyBudget:
    """Limits the total size of what requests keep in memory: bodies, decoded inputs, and answers not yet sent.

    Only bytes that have arrived count: a client that announces a large body and sends little does not block others.

    Attributes:
        max_bytes: the limit, which may be lowered or raised at any time.
        used_bytes: the bytes that are counted now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0

    @contextmanager
    def reservation(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that reserves bytes for one request; all are released at the end. It raises Overloaded."""
        reserved = 0

        def reserve(size: int) -> None:
            nonlocal reserved
            if self.used_bytes + size > self.max_bytes:
                raise Overloaded(
                    f"Too much request data in memory ({self.used_bytes:,} of {self.max_bytes:,} bytes). Retry later.",
                    retry_after_s=1,
                )
            self.used_bytes += size
            reserved += size

        try:
            yield reserve
        finally:
            self.used_bytes -= reserved

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count so many bytes for the duration of the `with` block; they exist already, so that none are refused."""
        self.used_bytes += size
        try:
            yield
        finally:
            self.used_bytes -= size


@dataclass(frozen=True)
class BodyRules:
    """What the bodies of one model's requests may be.

    Attributes:
        upload: the field that a raw body or an uploaded file fills; None if the task takes only JSON.
        task_fields: names of the task's own fields, which take precedence over request options of the same name.
        max_json_values: values that the JSON of a valid request may contain.
        max_bytes: maximum size of the body, before and after decompression.
    """

    upload: Upload | None
    task_fields: Container[str]
    max_json_values: int
    max_bytes: int

    @cached_property
    def plain_json(self) -> "BodyFormat":
        """The format of nearly all requests: JSON without further parameters."""
        return BodyFormat("json", partial(parse_json, query={}, max_values=self.max_json_values))


@dataclass(frozen=True, slots=True)
class BodyFormat:
    """What the head of a request says about its body.

    Attributes:
        name: json, form or upload.
        parse: returns the fields of the request from its body.
        is_compressed: whether the body is compressed.
        options: those of the query string.
    """

    name: str
    parse: Parse
    is_compressed: bool = False
    options: RequestOptions = RequestOptions()


def choose_format(headers: Mapping[bytes, bytes], query_string: bytes, rules: BodyRules) -> BodyFormat:
    """Return how the body is to be parsed, by the first header of each name. Raises ServiceError."""
    content_type, encoding = headers.get(b"content-type", b""), headers.get(b"content-encoding", b"")
    if content_type == _PLAIN_JSON and not query_string and not encoding:
        return rules.plain_json
    query = _read_query(query_string)
    option_names = tuple(name for name in OPTION_FIELDS if name not in rules.task_fields)
    _, options = parse_options(query, names=option_names)
    name, parse = _choose_parser(content_type.decode("latin-1"), rules, query)
    is_compressed = _is_compressed(encoding.decode("latin-1"))
    if is_compressed:
        parse = partial(parse_compressed, parse=parse, max_bytes=rules.max_bytes)
    return BodyFormat(name, parse, is_compressed, options)


async def read_body(
    receive: Receive, headers: Mapping[bytes, bytes], max_bytes: int, reserve: Callable[[int], None]
) -> Body:
    """Receive the body. Raises ServiceError and ClientDisconnect.

    Args:
        receive: of ASGI.
        headers: of the request; the first of each name.
        max_bytes: maximum size of the body.
        reserve: called with the size of each received chunk; raises if all bodies together exceed their limit.
    """
    declared = headers.get(b"content-length")
    if declared is not None and not (declared.isdigit() and len(declared) < 19):
        raise InvalidHeader("Content-Length must be a number of bytes.")
    if declared is not None and int(declared) > max_bytes:
        raise BodyTooLarge(f"The body has {declared[:20].decode()} bytes; the limit is {max_bytes:,}.")
    chunk, has_more = await _receive_chunk(receive)
    body: Body = chunk
    if has_more:
        # It grows in place: joining the chunks of a large body at its end would block the event loop.
        body = bytearray()
        while True:
            if len(body) + len(chunk) > max_bytes:
                raise BodyTooLarge(f"The body exceeds the limit of {max_bytes:,} bytes.")
            reserve(len(chunk))
            body += chunk
            if not has_more:
                break
            chunk, has_more = await _receive_chunk(receive)
    elif len(body) > max_bytes:
        raise BodyTooLarge(f"The body exceeds the limit of {max_bytes:,} bytes.")
    else:
        reserve(len(body))
    if not body:
        raise EmptyBody("The body is empty.")
    return body


async def _receive_chunk(receive: Receive) -> tuple[bytes, bool]:
    """Return a piece of the body, and whether there are more. Raises ClientDisconnect."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


def first_headers(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers of a request; of several lines with one name, the first."""
    headers: dict[bytes, bytes] | None = scope.get(_HEADERS_KEY)
    if headers is None:
        headers = scope[_HEADERS_KEY] = dict(reversed(scope["headers"]))
    return headers


def _read_query(query_string: bytes) -> dict[str, str]:
    """Return the fields of the query string. Raises InvalidRequest."""
    if not query_string:
        return {}
    if len(query_string) > _MAX_QUERY_BYTES:
        raise InvalidRequest(
            f"The query string has {len(query_string):,} bytes; at most {_MAX_QUERY_BYTES:,} may be sent."
        )
    try:
        pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        message = f"The query string has more than {_MAX_QUERY_FIELDS} fields; send the input in the body."
        raise InvalidRequest(message) from None
    return unique_items(pairs)


def _choose_parser(content_type: str, rules: BodyRules, query: Mapping[str, str]) -> tuple[str, Parse]:
    """Return the format of the body, and the function that parses it. Raises ServiceError."""
    if len(content_type) > _MAX_CONTENT_TYPE:
        raise InvalidHeader(f"Content-Type must not have more than {_MAX_CONTENT_TYPE:,} characters.")
    media_type, upload = content_type.partition(";")[0].strip().lower(), rules.upload
    if media_type == _JSON:
        _check_charset(content_type)
        return "json", partial(parse_json, query=query, max_values=rules.max_json_values)
    if upload is not None and media_type == _FORM:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise MalformedBody("The Content-Type of a multipart form must have a boundary.")
        return "form", partial(parse_form, boundary=boundary, upload=upload, query=query)
    if upload is not None and upload.accepts(media_type):
        _check_charset(content_type)
        return "upload", partial(parse_upload, name=upload.field, query=query)
    raise _unsupported(content_type, media_type, upload)


def _unsupported(content_type: str, media_type: str, upload: Upload | None) -> UnsupportedMediaType:
    accepted = [_JSON] if upload is None else [_JSON, _FORM, *upload.media_types]
    received = f"Unsupported Content-Type '{content_type[:80]}'" if content_type else "The Content-Type is missing"
    message = f"{received}; this model accepts {', '.join(accepted)}."
    if media_type == _CURL_DEFAULT:
        example = _JSON if upload is None else upload.media_types[0]
        message += f" curl sends this type unless told otherwise: add -H 'Content-Type: {example}'."
    return UnsupportedMediaType(message)


def _is_compressed(content_encoding: str) -> bool:
    """Return whether the body is compressed by gzip (RFC 9110, 8.4). Raises UnsupportedMediaType for others."""
    encoding = content_encoding.strip().lower()
    if encoding in ("", "identity"):
        return False
    if encoding in ("gzip", "x-gzip"):
        return True
    message = f"Unsupported Content-Encoding '{content_encoding[:40]}'; send the body as it is, or compressed by gzip."
    raise UnsupportedMediaType(message)


def _check_charset(content_type: str) -> None:
    """Raise UnsupportedMediaType for text in an encoding other than UTF-8, which would be misread."""
    charset = re.search(r';\s*charset\s*=\s*"?([\w.:+-]+)', content_type, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"Unsupported charset {charset[1][:40]}; send the text in UTF-8.")
