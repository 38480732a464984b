"""What a client is told of what went wrong inside: every exception that is not a ServiceError, as one."""

from pydantic import ValidationError

from service.backends.base import BackendError, DeviceLost, OutOfMemory
from service.engine.scheduler import Hung, TooLate
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

_MAX_PROBLEMS = 20
_MAX_VALUE_LENGTH = 200
"""Characters of a client's own words that are sent back to it."""
_ONCE_RESTARTED_S = 10
_ROOM_AGAIN_S = 2


def invalid_request(error: ValidationError) -> ServiceError:
    """The client's view of what pydantic found: where, and one of a few reasons."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    problems = tuple(
        Problem(
            ".".join(map(str, item["loc"]))[:_MAX_VALUE_LENGTH], _REASONS.get(item["type"], "wrong_type"), item["msg"]
        )
        for item in found[:_MAX_PROBLEMS]
    )
    first = problems[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    message = f"{first.where or 'The body'}: {first.message}{more}."
    if first.reason == "too_many":
        return TooLarge(message, details=problems)
    return InvalidRequest(message, details=problems)


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


def invalid_input(error: InvalidInput) -> ServiceError:
    """The client's view of what the task could not read."""
    kind = {"too_large": TooLarge, "invalid": InvalidRequest}.get(error.reason, Unreadable)
    return kind(str(error), details=error.problems)


def failure(error: BackendError | Hung | TooLate) -> ServiceError:
    """The client's view of what happened to its samples on the device, or before they came there."""
    if isinstance(error, OutOfMemory):
        message = "The device has no memory for this input, also alone; send a smaller one, or try again later."
        return NoMemory(message, retry_after_s=_ROOM_AGAIN_S)
    if isinstance(error, DeviceLost):
        message = "The device has failed and the server starts anew; try again then."
        return DeviceUnavailable(message, retry_after_s=_ONCE_RESTARTED_S)
    if isinstance(error, Hung):
        return DeviceHung("The device does not come back from a run; try again later.", retry_after_s=_ONCE_RESTARTED_S)
    if isinstance(error, TooLate):
        return DeadlineExceeded("There was no time left to compute the answer.")
    return BackendFailed("The model failed on this input.")
