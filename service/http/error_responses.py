"""The HTTP response of every error: one JSON format, for our errors and for those of FastAPI and Starlette.

Status and code belong to the error classes in `service/errors.py`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from service.engine.request import Trace
from service.errors import InternalError, InvalidRequest, MethodNotAllowed, NotFound, ServiceError
from tasks.contract import Problem

_LOG = logging.getLogger("service.request")


def trace_of(scope: Scope) -> Trace:
    """Return the trace of the request with this scope."""
    trace: Trace = scope["sevenfold.trace"]
    return trace


def error_response(error: ServiceError, trace: Trace) -> Response:
    """Return the response for an error; all errors have the same format."""
    trace.code = error.code
    if trace.span is not None:
        trace.error = error.__cause__ or error
    if error.status == HTTPStatus.INTERNAL_SERVER_ERROR and error.__cause__ is not None:
        _LOG.error("%s", error.message, exc_info=error.__cause__)
    return Response(error_content(error, trace.request_id), error.status, error.headers, media_type="application/json")


def error_content(error: ServiceError, request_id: str) -> bytes:
    """Return the body of an error's response."""
    body = error.as_fields() | {"request_id": request_id}
    return json.dumps({"error": body}, ensure_ascii=False).encode("utf-8", "replace")


def add_error_handlers(app: FastAPI, hint: str = "see /docs for the available paths.") -> None:
    """Answer errors of the service, of request validation and of routing in the one format.

    `hint` says what there is to whoever asks for a path that there is not.
    """

    async def on_service_error(request: Request, error: Any) -> Response:
        return error_response(error, trace_of(request.scope))

    async def on_validation_error(request: Request, error: Any) -> Response:
        return error_response(_invalid_parameters(error.errors()), trace_of(request.scope))

    async def on_http_exception(request: Request, error: Any) -> Response:
        return error_response(_service_error(error, request, hint), trace_of(request.scope))

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)


def _invalid_parameters(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """Return the error for parameters of a path or query that FastAPI has refused."""
    problems = tuple(
        Problem(str(error["loc"][-1]), error["type"], f"{error['msg']}, not {error['input']!r:.80}.")
        for error in errors
    )
    return InvalidRequest(f"{problems[0].where}: {problems[0].message}", details=problems)


def _service_error(error: HTTPException, request: Request, paths_hint: str) -> ServiceError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        path = request.url.path
        hint = " No path ends with a slash: drop it." if path.endswith("/") else ""
        return NotFound(f"Nothing found at {path[:200]}; {paths_hint}{hint}")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = sorted(Headers(error.headers).get("allow", "GET").split(", "))
        message = f"{request.method[:16]} is not allowed for {request.url.path[:200]}; use {' or '.join(allowed)}."
        return MethodNotAllowed(message, allow=allowed)
    if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return InvalidRequest(str(error.detail))
    return InternalError(str(error.detail))
