"""From the body of an HTTP request to a message for the pipeline: JSON, a file as it is, or a form with a file."""

import re
from collections.abc import AsyncGenerator, Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.engine.admission import OPTION_FIELDS, RequestOptions, parse_options
from service.engine.request import PredictRequest
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

T = TypeVar("T")

_JSON, _FORM = "application/json", "multipart/form-data"


class BodyBudget:
    """The bytes of all bodies under way together, and how many they may be.

    A body counts for what has come of it, so that whoever announces much and sends little keeps nobody out.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """A function that takes bytes for one request, which are given back at the end. It raises Overloaded."""
        mine = 0

        def take(size: int) -> None:
            nonlocal mine
            if self.taken + size > self.most:
                raise Overloaded(f"Bodies of {self.taken:,} bytes are under way; try again later.", retry_after_s=1)
            self.taken += size
            mine += size

        try:
            yield take
        finally:
            self.taken -= mine


async def read_message(
    request: Request,
    upload: Upload | None,
    task_fields: Container[str],
    *,
    max_bytes: int,
    take: Callable[[int], None],
) -> PredictRequest:
    """Reads the body, as far as it may go, and says how its fields are found. Raises ServiceError, ClientDisconnect.

    `task_fields` are the names that the task's own fields have. `take` is told of the bytes as they come, and raises
    where there are too many of all requests together.
    """
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    query = _once(request.query_params.multi_items()) if request.scope["query_string"] else {}
    if media_type == _JSON:
        body = await _read_body(request, max_bytes, take)
        return PredictRequest(
            "json", len(body), partial(_json_fields, body, query), options=_read_options(query, task_fields)
        )
    if upload is not None and media_type == _FORM:
        body = await _read_body(request, max_bytes, take)
        fields = _with_query(await _form_fields(request, body, upload), query)
        return PredictRequest("form", len(body), lambda: fields, options=_read_options(fields, task_fields))
    if upload is not None and _is_upload(media_type, upload):
        _check_charset(content_type)
        body = await _read_body(request, max_bytes, take)
        make = partial(_with_query, {upload.field: body}, query)
        return PredictRequest("upload", len(body), make, options=_read_options(query, task_fields))
    accepted = [_JSON] if upload is None else [_JSON, _FORM, *upload.media_types]
    sent = f"'{content_type[:80]}'" if content_type else "missing"
    raise UnsupportedMediaType(f"The Content-Type is {sent}; this model reads {', '.join(accepted)}.")


def _read_options(fields: Mapping[str, Any], task_fields: Container[str]) -> RequestOptions:
    """What the address or the form says of how to answer, known before anything is decoded. Raises InvalidRequest."""
    return parse_options(fields, names=tuple(name for name in OPTION_FIELDS if name not in task_fields))[1]


def _is_upload(media_type: str, upload: Upload) -> bool:
    """Whether a body is a file for this field. What it really is, its bytes tell: a wrong subtype does no harm."""
    kinds = {known.partition("/")[0] for known in upload.media_types}
    return media_type == "application/octet-stream" or media_type.partition("/")[0] in kinds


def _check_charset(content_type: str) -> None:
    """Raises UnsupportedMediaType for a text in another code than UTF-8: read as that, it would be another text."""
    charset = re.search(r';\s*charset\s*=\s*"?([\w.:+-]+)', content_type, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"The charset is {charset[1][:40]}; send the text in UTF-8.")


async def _read_body(request: Request, max_bytes: int, take: Callable[[int], None]) -> bytes:
    declared = request.headers.get("content-length")
    if declared is not None and not (declared.isascii() and declared.isdigit() and len(declared) < 19):
        raise InvalidHeader("The Content-Length is no number of bytes.")
    if declared is not None and int(declared) > max_bytes:
        raise BodyTooLarge(f"The body has {declared[:20]} bytes; at most {max_bytes:,} are accepted.")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(f"The body has more than the {max_bytes:,} bytes that are accepted.")
        take(len(chunk))
        chunks.append(chunk)
    if size == 0:
        raise EmptyBody("The body is empty.")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _json_fields(body: bytes, query: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        fields = from_json(body)  # NaN is let through here, so that the column it stands in can be named.
    except ValueError as error:
        raise MalformedBody(f"The body is not JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise MalformedBody(f"The body is a JSON {_JSON_KINDS[type(fields)]}, and must be an object.")
    return _with_query(fields, query)


_JSON_KINDS = {list: "array", str: "string", int: "number", float: "number", bool: "true or false", type(None): "null"}


def _once(items: Sequence[tuple[str, T]]) -> dict[str, T]:
    """The items as a mapping. Raises InvalidRequest where a name stands twice: one of them would be ignored."""
    found = dict(items)
    if len(found) < len(items):
        twice = next(name for i, (name, _) in enumerate(items) if any(name == other for other, _ in items[:i]))
        raise InvalidRequest(f"{twice[:64]}: given twice.")
    return found


def _with_query(fields: Mapping[str, Any], query: Mapping[str, str]) -> Mapping[str, Any]:
    if twice := fields.keys() & query.keys():
        raise InvalidRequest(f"{', '.join(sorted(twice))}: given in the body and in the address.")
    return {**fields, **query}


async def _form_fields(request: Request, body: bytes, upload: Upload) -> Mapping[str, Any]:
    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    if not body.rstrip(b"\r\n").endswith(b"--"):
        raise MalformedBody("The multipart form breaks off before its last boundary.")
    try:
        parser = MultiPartParser(request.headers, once(), max_files=1, max_fields=100, max_part_size=len(body))
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise MalformedBody(f"The body is not a multipart form: {error}.") from None
    try:
        return _once([(name, await _form_value(name, value, upload)) for name, value in form.multi_items()])
    finally:
        await form.close()


async def _form_value(name: str, value: UploadFile | str, upload: Upload) -> str | bytes:
    if isinstance(value, str):
        return value
    if name != upload.field:
        raise InvalidRequest(f"The file is in the field '{name[:64]}'; it belongs into '{upload.field}'.")
    return await value.read()
