"""The form of an answer: which one a client wants by `Accept` (RFC 9110, 12.5.1), and the answer in that form."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from service.errors import InvalidHeader, InvalidRequest, NotAcceptable
from tasks.contract import Answer, Representation

_MAX_RANGES, _MAX_HEADER_LENGTH = 50, 4096
_Range = tuple[str, str, dict[str, str], float]
"""Type, subtype, parameters, and how much it is wanted, 0…1."""


def choose_representation(representations: Sequence[Representation], accept: str | None) -> Representation:
    """The form that is wanted most; of equally wanted ones the first. Raises NotAcceptable, InvalidHeader."""
    if not accept or accept == "*/*":
        return representations[0]
    known = {name for representation in representations for name in _parsed(representation.media_type)[1]}
    ranges = [
        _read(part, known) for part in accept[:_MAX_HEADER_LENGTH].split(",", _MAX_RANGES)[:_MAX_RANGES] if part.strip()
    ]
    if not ranges:
        return representations[0]
    wanted = [_wanted(representation, ranges) for representation in representations]
    if max(wanted) <= 0:
        offered = ", ".join(representation.media_type for representation in representations)
        raise NotAcceptable(f"The Accept is '{accept[:80]}'; this model answers with {offered}.")
    return representations[wanted.index(max(wanted))]


def _read(part: str, known: Collection[str]) -> _Range:
    """A range of the header; parameters that no form has (a charset, an indent) restrict nothing."""
    media, parameters = _parsed(part)
    kind, _, subtype = media.partition("/")
    try:
        quality = float(parameters.pop("q", "1"))
    except ValueError:
        quality = -1.0
    if not 0 <= quality <= 1:
        raise InvalidHeader(f"Accept: '{part.strip()[:80]}' has a q that is not between 0 and 1.")
    needed = {name: value for name, value in parameters.items() if name in known}
    return kind, subtype or "*", needed, quality


def _parsed(media_type: str) -> tuple[str, dict[str, str]]:
    media, *listed = (part.strip() for part in media_type.split(";"))
    pairs = (parameter.partition("=") for parameter in listed if parameter)
    return media.lower(), {name.strip().lower(): value.strip().strip('"').lower() for name, _, value in pairs}


def _wanted(representation: Representation, ranges: Sequence[_Range]) -> float:
    """How much the form is wanted: what the most specific range that it is in says."""
    media, parameters = _parsed(representation.media_type)
    kind, _, subtype = media.partition("/")
    fitting = [
        ((of_kind != "*") + (of_subtype != "*") + len(needed), quality)
        for of_kind, of_subtype, needed, quality in ranges
        if of_kind in ("*", kind) and of_subtype in ("*", subtype) and needed.items() <= parameters.items()
    ]
    return max(fitting, default=(0, 0.0))[1]


def with_representation(representation: Representation, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request's fields with those that the form stands for. Raises InvalidRequest where the two disagree."""
    for name, value in representation.fields.items():
        if name in fields and not _same(fields[name], value):
            raise InvalidRequest(
                f"{name}: the request says {str(fields[name])[:40]!r}, "
                f"and its Accept ({representation.media_type}) {value!r}."
            )
    return {**fields, **representation.fields}


def _same(said: Any, value: Any) -> bool:
    """Whether a request's field, perhaps as text from an address, is what the form sets."""
    try:
        return bool(TypeAdapter(type(value)).validate_python(said) == value)
    except ValidationError:
        return False


def rendered(representation: Representation, model: str, version: str, answer: Answer) -> bytes:
    """The body of the response."""
    if representation.file is None:
        named = answer.model_copy(update={"model": model, "version": version})
        return named.model_dump_json(exclude_none=True).encode()
    found: Any = answer
    for name in representation.file.split("."):
        found = getattr(found, name)
    content: bytes = found
    return content


def content_type(representation: Representation) -> str:
    """Of the response: a form's parameters choose it, and do not belong to what JSON is called."""
    return representation.media_type.partition(";")[0]
