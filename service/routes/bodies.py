"""From the body of an HTTP request to a message for the pipeline: JSON, a file as it is, or a form with a file."""

from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any

from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.errors import BodyTooLarge, EmptyBody, InvalidHeader, InvalidRequest, MalformedBody, UnsupportedMediaType
from service.pipeline import Message
from tasks.contract import Upload

_JSON, _FORM = "application/json", "multipart/form-data"


async def read_message(request: Request, upload: Upload | None, *, max_bytes: int) -> Message:
    """Reads the body, as far as it may go, and says how its fields are found. Raises ServiceError."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    options = dict(request.query_params)
    if media_type == _JSON:
        body = await _read_body(request, max_bytes)
        return Message("json", len(body), partial(_json_fields, body, options))
    if upload is not None and media_type == _FORM:
        body = await _read_body(request, max_bytes)
        fields = _with_options(await _form_fields(request, body, upload), options)
        return Message("form", len(body), lambda: fields)
    if upload is not None and _is_upload(media_type, upload):
        body = await _read_body(request, max_bytes)
        return Message("upload", len(body), partial(_with_options, {upload.field: body}, options))
    accepted = [_JSON] if upload is None else [_JSON, _FORM, *upload.media_types]
    sent = f"'{content_type[:80]}'" if content_type else "missing"
    raise UnsupportedMediaType(f"The Content-Type is {sent}; this model reads {', '.join(accepted)}.")


def _is_upload(media_type: str, upload: Upload) -> bool:
    """Whether a body is a file for this field. What it really is, its bytes tell: a wrong subtype does no harm."""
    kinds = {known.partition("/")[0] for known in upload.media_types}
    return media_type == "application/octet-stream" or media_type.partition("/")[0] in kinds


async def _read_body(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length")
    if declared is not None and not (declared.isascii() and declared.isdigit()):
        raise InvalidHeader("The Content-Length is no number.")
    if declared is not None and int(declared) > max_bytes:
        raise BodyTooLarge(f"The body has {declared[:20]} bytes; at most {max_bytes:,} are accepted.")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(f"The body has more than the {max_bytes:,} bytes that are accepted.")
        chunks.append(chunk)
    if size == 0:
        raise EmptyBody("The body is empty.")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _json_fields(body: bytes, options: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        fields = from_json(body)  # NaN is let through here, so that the column it stands in can be named.
    except ValueError as error:
        raise MalformedBody(f"The body is not JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise MalformedBody(f"The body is a JSON {_JSON_KINDS[type(fields)]}, and must be an object.")
    return _with_options(fields, options)


_JSON_KINDS = {list: "array", str: "string", int: "number", float: "number", bool: "true or false", type(None): "null"}


def _with_options(fields: Mapping[str, Any], options: Mapping[str, str]) -> Mapping[str, Any]:
    if twice := fields.keys() & options.keys():
        raise InvalidRequest(f"{', '.join(sorted(twice))}: given in the body and in the address.")
    return {**fields, **options}


async def _form_fields(request: Request, body: bytes, upload: Upload) -> Mapping[str, Any]:
    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(request.headers, once(), max_files=1, max_fields=100, max_part_size=len(body))
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise MalformedBody(f"The body is not a multipart form: {error}.") from None
    try:
        return {name: await _form_value(name, value, upload) for name, value in form.multi_items()}
    finally:
        await form.close()


async def _form_value(name: str, value: UploadFile | str, upload: Upload) -> str | bytes:
    if isinstance(value, str):
        return value
    if name != upload.field:
        raise InvalidRequest(f"The file is in the field '{name[:64]}'; it belongs into '{upload.field}'.")
    return await value.read()
