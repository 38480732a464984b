"""Read the body of a prediction request: JSON, a raw file, or a multipart form with a file."""

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
    """Limits the total size of all request bodies in memory.

    Only bytes that have arrived count: a client that announces a large body and sends little does not block others.
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


async def read_predict_request(
    request: Request,
    upload: Upload | None,
    task_fields: Container[str],
    *,
    max_bytes: int,
    reserve: Callable[[int], None],
) -> PredictRequest:
    """Read the body; its fields are parsed later, in a worker thread. Raises ServiceError and ClientDisconnect.

    Args:
        request: the request, of which only the headers have been read.
        upload: the field that a raw body or an uploaded file fills; None if the task takes only JSON.
        task_fields: names of the task's own fields, which take precedence over request options of the same name.
        max_bytes: maximum size of the body.
        reserve: called with the size of each received chunk; raises if all bodies together exceed their limit.
    """
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    query = _unique_items(request.query_params.multi_items()) if request.scope["query_string"] else {}
    if media_type == _JSON:
        body = await _read_body(request, max_bytes, reserve)
        parse = partial(_parse_json, body, query)
        return PredictRequest("json", len(body), parse, options=_read_options(query, task_fields))
    if upload is not None and media_type == _FORM:
        body = await _read_body(request, max_bytes, reserve)
        fields = _merge_query(await _parse_form(request, body, upload), query)
        return PredictRequest("form", len(body), lambda: fields, options=_read_options(fields, task_fields))
    if upload is not None and _is_upload(media_type, upload):
        _check_charset(content_type)
        body = await _read_body(request, max_bytes, reserve)
        parse = partial(_merge_query, {upload.field: body}, query)
        return PredictRequest("upload", len(body), parse, options=_read_options(query, task_fields))
    accepted = [_JSON] if upload is None else [_JSON, _FORM, *upload.media_types]
    received = f"Unsupported Content-Type '{content_type[:80]}'" if content_type else "The Content-Type is missing"
    raise UnsupportedMediaType(f"{received}; this model accepts {', '.join(accepted)}.")


def _read_options(fields: Mapping[str, Any], task_fields: Container[str]) -> RequestOptions:
    """Return the request options that are known before anything is decoded. Raises InvalidRequest."""
    return parse_options(fields, names=tuple(name for name in OPTION_FIELDS if name not in task_fields))[1]


def _is_upload(media_type: str, upload: Upload) -> bool:
    """Return whether a raw body fills the upload field. A wrong subtype is fine: decoding goes by the content."""
    kinds = {accepted.partition("/")[0] for accepted in upload.media_types}
    return media_type == "application/octet-stream" or media_type.partition("/")[0] in kinds


def _check_charset(content_type: str) -> None:
    """Raise UnsupportedMediaType for text in an encoding other than UTF-8, which would be misread."""
    charset = re.search(r';\s*charset\s*=\s*"?([\w.:+-]+)', content_type, re.IGNORECASE)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"Unsupported charset {charset[1][:40]}; send the text in UTF-8.")


async def _read_body(request: Request, max_bytes: int, reserve: Callable[[int], None]) -> bytes:
    declared = request.headers.get("content-length")
    if declared is not None and not (declared.isascii() and declared.isdigit() and len(declared) < 19):
        raise InvalidHeader("Content-Length must be a number of bytes.")
    if declared is not None and int(declared) > max_bytes:
        raise BodyTooLarge(f"The body has {declared[:20]} bytes; the limit is {max_bytes:,}.")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(f"The body exceeds the limit of {max_bytes:,} bytes.")
        reserve(len(chunk))
        chunks.append(chunk)
    if size == 0:
        raise EmptyBody("The body is empty.")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _parse_json(body: bytes, query: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        fields = from_json(body)  # Accepts NaN, so that validation can name the field that holds it.
    except ValueError as error:
        raise MalformedBody(f"The body is not valid JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise MalformedBody(f"The body must be a JSON object, not {_JSON_TYPES[type(fields)]}.")
    return _merge_query(fields, query)


_JSON_TYPES = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a Boolean",
    type(None): "null",
}


def _unique_items(items: Sequence[tuple[str, T]]) -> dict[str, T]:
    """Return the items as a dict. Raises InvalidRequest for a repeated name, since one value would be ignored."""
    unique = dict(items)
    if len(unique) < len(items):
        names = [name for name, _ in items]
        repeated = next(name for i, name in enumerate(names) if name in names[:i])
        raise InvalidRequest(f"{repeated[:64]}: given more than once.")
    return unique


def _merge_query(fields: Mapping[str, Any], query: Mapping[str, str]) -> Mapping[str, Any]:
    if repeated := fields.keys() & query.keys():
        raise InvalidRequest(f"{', '.join(sorted(repeated))}: given in both the body and the query string.")
    return {**fields, **query}


async def _parse_form(request: Request, body: bytes, upload: Upload) -> Mapping[str, Any]:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body

    if not body.rstrip(b"\r\n").endswith(b"--"):
        raise MalformedBody("The multipart form is truncated: its final boundary is missing.")
    try:
        parser = MultiPartParser(request.headers, chunks(), max_files=1, max_fields=100, max_part_size=len(body))
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise MalformedBody(f"The body is not a valid multipart form: {error}.") from None
    try:
        return _unique_items([(name, await _form_value(name, value, upload)) for name, value in form.multi_items()])
    finally:
        await form.close()


async def _form_value(name: str, value: UploadFile | str, upload: Upload) -> str | bytes:
    if isinstance(value, str):
        return value
    if name != upload.field:
        raise InvalidRequest(f"The file is in field '{name[:64]}'; send it in field '{upload.field}'.")
    return await value.read()
