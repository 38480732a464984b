"""Errors that the API returns.

The stages of a request, and the errors that each of them raises:

    head → body → permit → request → samples → outputs → answer
    │      │      │        │         │         └ InvalidAnswer 500, InternalError 500
    │      │      │        │         └ BackendFailed 500, NoMemory 503, DeviceUnavailable 503, DeviceHung 503
    │      │      │        └ MalformedBody 400, BodyTooLarge 413, InvalidRequest 422, Unreadable 422, TooLarge 413
    │      │      └ Overloaded 503, DeviceHung 503
    │      └ BodyTooLarge 413, UnsupportedMediaType 415, EmptyBody 400, Overloaded 503
    └ MalformedRequest 400, HeadTooLarge 431, HeadTimeout 408, Unauthorized 401,
      NotFound 404, ModelNotFound 404, MethodNotAllowed 405, NotAcceptable 406, ModelUnavailable 503, InvalidHeader 400

    requests of operators: Forbidden 403, Unauthorized 401, Conflict 409, ModelRejected 422

    anywhere: DeadlineExceeded 504, Stopped 503

Every error is sent as {"error": {"code", "message", "details", "request_id"}}. The codes below are the complete list.
"""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from tasks.contract import Problem


class ServiceError(Exception):
    """Base class: an HTTP status, an error code, and a message that is safe to show and says what to do."""

    status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, details: tuple[Problem, ...] = (), retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.retry_after_s = retry_after_s

    def as_fields(self) -> dict[str, Any]:
        """Return code, message and details as they are sent."""
        fields: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.details:
            fields["details"] = [vars(problem) for problem in self.details]
        return fields

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the response must have."""
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}


class InternalError(ServiceError):
    """A fault of the service, not of the request; the log has the details under the request's id."""


class InvalidAnswer(ServiceError):
    """The network's output for this input is unusable (NaN, for example)."""

    code = "invalid_answer"


class BackendFailed(ServiceError):
    """The graph failed on this input, even in a batch of its own."""

    code = "backend_failed"


class NoMemory(ServiceError):
    """The device has too little memory for this input, even in a batch of its own."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "out_of_memory"


class DeviceUnavailable(ServiceError):
    """The device has failed permanently; the process exits and its supervisor starts a new one."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "device_lost"


class DeviceHung(ServiceError):
    """The device is not responding."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "device_hung"


class MalformedRequest(ServiceError):
    """The bytes that arrived are not a valid HTTP/1.1 request; the connection is closed."""

    status, code = HTTPStatus.BAD_REQUEST, "malformed_request"


class HeadTooLarge(ServiceError):
    """The request's target and headers exceed the size limit; the connection is closed."""

    status, code = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large"


class HeadTimeout(ServiceError):
    """The client did not send the request's headers in time; the connection is closed."""

    status, code = HTTPStatus.REQUEST_TIMEOUT, "head_timeout"


class NotFound(ServiceError):
    """No resource has this path."""

    status, code = HTTPStatus.NOT_FOUND, "not_found"


class ModelNotFound(ServiceError):
    """There is no such model, or no such version of it."""

    status, code = HTTPStatus.NOT_FOUND, "model_not_found"


class MethodNotAllowed(ServiceError):
    """The path exists but does not support the request's method.

    `allow` lists the methods that it handles. HEAD is supported wherever GET is, and OPTIONS everywhere
    (`service/http/middleware.py`).
    """

    status, code = HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed"

    def __init__(self, message: str, *, allow: Iterable[str]) -> None:
        super().__init__(message)
        methods = {"OPTIONS", *allow}
        self.allow = ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))

    @property
    def headers(self) -> Mapping[str, str]:
        """The `Allow` header (RFC 9110, 15.5.6)."""
        return {"allow": self.allow}


class NotAcceptable(ServiceError):
    """The model has none of the representations that `Accept` lists."""

    status, code = HTTPStatus.NOT_ACCEPTABLE, "not_acceptable"


class ModelUnavailable(ServiceError):
    """The model exists but cannot be served, or is not loaded yet."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "model_unavailable"


class Forbidden(ServiceError):
    """The server does not allow this request."""

    status, code = HTTPStatus.FORBIDDEN, "forbidden"


class Unauthorized(ServiceError):
    """The request lacks an API key, or the operators' token, or has another one.

    `reason` is the error code of RFC 6750, 3.1, empty if the request had no token.
    """

    status, code = HTTPStatus.UNAUTHORIZED, "unauthorized"

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def headers(self) -> Mapping[str, str]:
        """The scheme in which the token is sent (RFC 9110, 11.6.1)."""
        return {"www-authenticate": f'Bearer error="{self.reason}"' if self.reason else "Bearer"}


class Conflict(ServiceError):
    """The request contradicts a setting of the server."""

    status, code = HTTPStatus.CONFLICT, "conflict"


class ModelRejected(ServiceError):
    """A version that was to be served cannot be loaded, or does not pass its verification."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "model_rejected"


class InvalidHeader(ServiceError):
    """A header that this service reads has an invalid value."""

    status, code = HTTPStatus.BAD_REQUEST, "invalid_header"


class Overloaded(ServiceError):
    """The model has its maximum of concurrent requests, or cannot answer this one before its deadline.

    `retry_after_s` is the time after which the client should retry.
    """

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "overloaded"


class Stopped(ServiceError):
    """The server is shutting down and its grace period ended before the answer was ready."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "stopped"


class BodyTooLarge(ServiceError):
    """The body exceeds the size limit."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large"


class EmptyBody(ServiceError):
    """The body is empty."""

    status, code = HTTPStatus.BAD_REQUEST, "empty_body"


class MalformedBody(ServiceError):
    """The body is not valid JSON or not a valid multipart form, contrary to its content type."""

    status, code = HTTPStatus.BAD_REQUEST, "malformed_body"


class UnsupportedMediaType(ServiceError):
    """The model does not accept this content type."""

    status, code = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"


class InvalidRequest(ServiceError):
    """Fields are missing, unknown or of the wrong type; `details` has one entry for each."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request"


class Unreadable(ServiceError):
    """The request is well formed, but the image or text in it cannot be decoded."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "unreadable_input"


class TooLarge(ServiceError):
    """The input exceeds a limit of the model (pixels, rows, characters)."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "input_too_large"


class DeadlineExceeded(ServiceError):
    """The request's deadline passed before the answer was ready."""

    status, code = HTTPStatus.GATEWAY_TIMEOUT, "deadline_exceeded"
