"""What a client is told when it gets no answer.

The line of a request, and where each error is raised:

    head → body → permit → request → samples → outputs → answer
    │      │      │        │         │         └ InvalidAnswer 500, InternalError 500
    │      │      │        │         └ BackendFailed 500, NoMemory 503, DeviceUnavailable 503, DeviceHung 503
    │      │      │        └ MalformedBody 400, InvalidRequest 422, Unreadable 422, TooLarge 413
    │      │      └ Overloaded 503, DeviceHung 503
    │      └ BodyTooLarge 413, UnsupportedMediaType 415, EmptyBody 400, Overloaded 503
    └ NotFound 404, ModelNotFound 404, MethodNotAllowed 405, NotAcceptable 406, ModelUnavailable 503, InvalidHeader 400

    anywhere: DeadlineExceeded 504, Stopped 503

Every one of them is sent as {"error": {"code", "message", "details", "request_id"}}; the codes below are all there are.
"""

from http import HTTPStatus
from typing import ClassVar

from tasks.contract import Problem


class ServiceError(Exception):
    """An error with a status and a code of its own; its message is safe to show and says what to do."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, details: tuple[Problem, ...] = (), retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.retry_after_s = retry_after_s


class InternalError(ServiceError):
    """Something is wrong with the service, not with the request; the log has the details under the request's id."""


class InvalidAnswer(ServiceError):
    """The network gave no usable answer for this input (a NaN, say)."""

    code = "invalid_answer"


class BackendFailed(ServiceError):
    """The graph could not be run on this input, also alone."""

    code = "backend_failed"


class NoMemory(ServiceError):
    """The device has no room for this input, not even alone."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "out_of_memory"


class DeviceUnavailable(ServiceError):
    """The device has failed for good; the process ends, and its supervisor starts another."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "device_lost"


class DeviceHung(ServiceError):
    """What the device was given does not come back."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "device_hung"


class NotFound(ServiceError):
    """There is nothing at this path."""

    status, code = HTTPStatus.NOT_FOUND, "not_found"


class ModelNotFound(ServiceError):
    """No model, or no version of it, has this name."""

    status, code = HTTPStatus.NOT_FOUND, "model_not_found"


class MethodNotAllowed(ServiceError):
    """The path is right and the verb is not."""

    status, code = HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed"


class NotAcceptable(ServiceError):
    """The answer has none of the forms that are wanted."""

    status, code = HTTPStatus.NOT_ACCEPTABLE, "not_acceptable"


class ModelUnavailable(ServiceError):
    """The model is there and cannot be served, or is not loaded yet."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "model_unavailable"


class InvalidHeader(ServiceError):
    """A header that this service reads has a value it cannot read."""

    status, code = HTTPStatus.BAD_REQUEST, "invalid_header"


class Overloaded(ServiceError):
    """As many requests as the model may have are under way, or too many for this one to be answered in its time.

    `retry_after_s` says when to come again.
    """

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "overloaded"


class Stopped(ServiceError):
    """The server was told to stop and its grace time ran out before there was an answer."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "stopped"


class BodyTooLarge(ServiceError):
    """The body has more bytes than are accepted."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large"


class EmptyBody(ServiceError):
    """There is no body."""

    status, code = HTTPStatus.BAD_REQUEST, "empty_body"


class MalformedBody(ServiceError):
    """The body is not the JSON or the multipart form that its content type says."""

    status, code = HTTPStatus.BAD_REQUEST, "malformed_body"


class UnsupportedMediaType(ServiceError):
    """The content type is none of those that the model reads."""

    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"


class InvalidRequest(ServiceError):
    """Fields are missing, unknown or of the wrong kind: `details` has one entry for each."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request"


class Unreadable(ServiceError):
    """The request is well formed, but the picture (or text) in it cannot be read."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "unreadable_input"


class TooLarge(ServiceError):
    """The input is larger than the model accepts: pixels, rows."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "input_too_large"


class DeadlineExceeded(ServiceError):
    """The request's time ran out before it was answered."""

    status, code = HTTPStatus.GATEWAY_TIMEOUT, "deadline_exceeded"
