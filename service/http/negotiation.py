"""Content negotiation: choose the representation of an answer by `Accept` (RFC 9110, 12.5.1) and render it.

Worker processes run `parse_for` and `render`, and so import this module: it imports no web framework.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from service.engine.request import Body, Parse
from service.errors import InvalidHeader, InvalidRequest, NotAcceptable
from tasks.contract import Answer, Representation, Upload

_MAX_RANGES, _MAX_HEADER_LENGTH = 50, 4096
_MediaRange = tuple[str, str, dict[str, str], float]
"""Type, subtype, parameters and quality (0…1) of one media range of an `Accept` header."""


def choose_representation(representations: Sequence[Representation], accept: str | None) -> Representation:
    """Return the representation with the highest quality, and the first of several with the same.

    Raises NotAcceptable and InvalidHeader.
    """
    if not accept or accept == "*/*":
        return representations[0]
    known = {name for representation in representations for name in _parse_media_type(representation.media_type)[1]}
    parts = accept[:_MAX_HEADER_LENGTH].split(",", _MAX_RANGES)[:_MAX_RANGES]
    ranges = [_parse_range(part, known) for part in parts if part.strip()]
    if not ranges:
        return representations[0]
    qualities = [_quality(representation, ranges) for representation in representations]
    if max(qualities) <= 0:
        available = ", ".join(representation.media_type for representation in representations)
        raise NotAcceptable(f"Cannot satisfy Accept '{accept[:80]}'; this model can answer with {available}.")
    return representations[qualities.index(max(qualities))]


def _parse_range(part: str, known: Collection[str]) -> _MediaRange:
    """Parse one media range. Parameters that no representation has (a charset, an indent) are ignored."""
    media_type, parameters = _parse_media_type(part)
    kind, _, subtype = media_type.partition("/")
    try:
        quality = float(parameters.pop("q", "1"))
    except ValueError:
        quality = -1.0
    if not 0 <= quality <= 1:
        raise InvalidHeader(f"Accept: '{part.strip()[:80]}' has a q that is not between 0 and 1.")
    required = {name: value for name, value in parameters.items() if name in known}
    return kind, subtype or "*", required, quality


def _parse_media_type(text: str) -> tuple[str, dict[str, str]]:
    media_type, *parameters = (part.strip() for part in text.split(";"))
    pairs = (parameter.partition("=") for parameter in parameters if parameter)
    return media_type.lower(), {name.strip().lower(): value.strip().strip('"').lower() for name, _, value in pairs}


def _quality(representation: Representation, ranges: Sequence[_MediaRange]) -> float:
    """Return the quality that the most specific matching range gives a representation; 0 if none matches."""
    media_type, parameters = _parse_media_type(representation.media_type)
    kind, _, subtype = media_type.partition("/")
    matches = [
        ((range_kind != "*") + (range_subtype != "*") + len(required), quality)
        for range_kind, range_subtype, required, quality in ranges
        if range_kind in ("*", kind) and range_subtype in ("*", subtype) and required.items() <= parameters.items()
    ]
    return max(matches, default=(0, 0.0))[1]


def apply_representation(representation: Representation, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the request fields that a representation implies. Raises InvalidRequest if the request contradicts them."""
    for name, value in representation.fields.items():
        if name in fields and not _is_equal(fields[name], value):
            raise InvalidRequest(
                f"{name}: the request has {str(fields[name])[:40]!r}, "
                f"but its Accept ({representation.media_type}) implies {value!r}."
            )
    return {**fields, **representation.fields}


def _is_equal(field: Any, value: Any) -> bool:
    """Return whether a request's field, which is text if it comes from the query string, equals an implied value."""
    try:
        return bool(TypeAdapter(type(value)).validate_python(field) == value)
    except ValidationError:
        return False


def parse_for(representation: Representation, upload: Upload | None, parse: Parse, body: Body) -> Mapping[str, Any]:
    """Return the fields of a request that is to be answered in this representation. Raises ServiceError."""
    fields = apply_representation(representation, parse(body))
    if representation.file is not None and upload is not None and isinstance(fields.get(upload.field), list):
        raise InvalidRequest(
            f"{upload.field}: a list is answered as application/json only; send one at a time to get "
            f"{representation.media_type}."
        )
    return fields


def render(representation: Representation, model: str, version: str, answer: Answer) -> bytes:
    """Return the body of the response; the answer gets the names of the model and its version."""
    if representation.file is None:
        answer.model, answer.version = model, version
        return answer.model_dump_json(exclude_none=True).encode()
    value: Any = answer
    for name in representation.file.split("."):
        value = getattr(value, name)
    content: bytes = value
    return content


def content_type(representation: Representation) -> str:
    """Return the response's content type: parameters select a representation and are not part of it."""
    return representation.media_type.partition(";")[0]
