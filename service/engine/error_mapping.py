"""Translates exceptions of the engine, the backend and the task into the errors that a client receives.

An exception of a step becomes a ServiceError here, with a message that is safe to show. Knows no pipeline and no HTTP.
"""

from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from service.backends.base import BackendError, DeviceLost, OutOfMemory
from service.engine.scheduler import HungRun, MissedDeadline
from service.errors import (
    BackendFailed,
    DeadlineExceeded,
    DeviceHung,
    DeviceUnavailable,
    InvalidRequest,
    NoMemory,
    ServiceError,
    TooLarge,
    Unreadable,
)
from tasks.contract import InvalidInput, Problem
from tasks.near_names import suggest

_MAX_PROBLEMS = 20
_MAX_LOCATION_LENGTH = 200
"""Characters of a problem's location, which contains the client's own field names."""
_DEVICE_RETRY_AFTER_S = 10
_MEMORY_RETRY_AFTER_S = 2


def map_validation_error(error: ValidationError, request_type: type[BaseModel], options: Iterable[str]) -> ServiceError:
    """Return InvalidRequest, or TooLarge, with the location and the reason of each of pydantic's errors.

    `options` are the names of fields that a request may have besides those of its type.
    """
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    errors.sort(key=lambda item: _PROMINENCE.get(item["type"], len(_PROMINENCE)))
    problems = tuple(
        Problem(
            ".".join(map(str, item["loc"]))[:_MAX_LOCATION_LENGTH],
            _REASONS.get(item["type"], "wrong_type"),
            _describe_unknown_field(item["loc"], request_type, options) if _is_plain_unknown(item) else _wording(item),
        )
        for item in errors[:_MAX_PROBLEMS]
    )
    first = problems[0]
    message = f"{first.where or 'The body'}: {first.message}"
    if len(errors) > 1:
        message = f"{message.removesuffix('.')} (and {len(errors) - 1} more)"
    if not message.endswith((".", "?")):
        message += "."
    if first.reason == "too_many":
        return TooLarge(message, details=problems)
    return InvalidRequest(message, details=problems)


def _wording(item: Any) -> str:
    """Return the message of one of pydantic's errors, without the prefix of those that a validator raised."""
    return str(item["msg"]).removeprefix("Value error, ")


def _is_plain_unknown(item: Any) -> bool:
    """Return whether an error is pydantic's own for an unknown field, which a task has not described better."""
    return bool(item["type"] == "extra_forbidden" and item["msg"] == "Extra inputs are not permitted")


def _describe_unknown_field(location: tuple[int | str, ...], kind: Any, options: Iterable[str]) -> str:
    """Return a message that suggests the field that the client may have meant, or lists all fields."""
    *parents, name = location
    for parent in parents:
        if isinstance(parent, str) and kind is not None:
            field = kind.model_fields.get(parent)
            kind = None if field is None else _model_in(field.annotation)
    known = [] if kind is None else [field.alias or key for key, field in kind.model_fields.items()]
    if not parents:
        known += options
    nearest = suggest(str(name), known)
    listed = f" The fields are {', '.join(known)}." if known and not nearest else ""
    return f"there is no such field.{nearest}{listed}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that an annotation contains: `Row` of `list[Row] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


_PROMINENCE = {"too_many": 0, "extra_forbidden": 1}
"""Types of the errors that are listed first, in this order: a mistyped name also makes a field missing."""


_REASONS = {
    "missing": "missing",
    "extra_forbidden": "unknown_field",
    "finite_number": "not_finite",
    "too_many": "too_many",
    "too_short": "empty",
    "string_too_short": "empty",
    "too_long": "too_long",
    "string_too_long": "too_long",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "greater_than": "out_of_range",
    "less_than": "out_of_range",
    "value_error": "malformed",
}
"""Pydantic's error types, and the reason that a client is given for each."""


def map_input_error(error: InvalidInput) -> ServiceError:
    """Return the error for an input that the task could not read."""
    error_type = {"too_large": TooLarge, "invalid": InvalidRequest}.get(error.reason, Unreadable)
    return error_type(str(error), details=error.problems)


def map_run_error(error: BackendError | HungRun | MissedDeadline) -> ServiceError:
    """Return the error for samples that failed on the device, or while they waited for it."""
    if isinstance(error, OutOfMemory):
        message = (
            "This input does not fit into the device's memory, even on its own. Send a smaller input, or retry later."
        )
        return NoMemory(message, retry_after_s=_MEMORY_RETRY_AFTER_S)
    if isinstance(error, DeviceLost):
        message = "The device failed; the server is restarting. Retry later."
        return DeviceUnavailable(message, retry_after_s=_DEVICE_RETRY_AFTER_S)
    if isinstance(error, HungRun):
        return device_hung()
    if isinstance(error, MissedDeadline):
        return DeadlineExceeded("The answer could not be computed before the request's deadline.")
    return BackendFailed("The model failed on this input.")


def device_hung() -> DeviceHung:
    """Return the error for a request that meets a device whose runs do not end."""
    return DeviceHung("The device is not responding. Retry later.", retry_after_s=_DEVICE_RETRY_AFTER_S)
