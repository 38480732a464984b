"""Cross-origin requests: which pages of other sites may use the server from a browser (the CORS protocol).

Starlette's middleware decides and sets the headers. It is used in two places. Outermost, it adds the headers to every
response, errors included, since a page cannot read a response without them. Inside the layer that logs and counts, it
answers preflights, which therefore have a request id as well. Cookies are never asked for: a client proves itself by
the header `Authorization`, which a page must set on purpose.
"""

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Forbidden
from service.http.error_responses import error_response, trace_of
from service.settings import InvalidSetting

_ALL = "*"
_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_REQUEST_HEADERS = (
    "Authorization",
    "Content-Encoding",
    "Traceparent",
    "Tracestate",
    "X-Request-Id",
    "X-Request-Priority",
    "X-Request-Timeout-Ms",
)
_RESPONSE_HEADERS = ("Retry-After", "Server-Timing", "WWW-Authenticate", "X-Model", "X-Request-Id")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")


class CorsMiddleware(CORSMiddleware):
    """Adds the headers that let pages of the origins read responses."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        """Raises InvalidSetting if an origin is not one that a browser sends."""
        super().__init__(
            app,
            allow_origins=check_origins(origins),
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_RESPONSE_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the request, and add the headers to its response."""
        if scope["type"] == "http":
            await self.simple_response(scope, receive, send, request_headers=Headers(scope=scope))
        else:
            await self.app(scope, receive, send)


class PreflightMiddleware(CorsMiddleware):
    """Answers preflights: `OPTIONS` with the method that a page wants to use. Other requests pass."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight, or pass the request on."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = Headers(scope=scope)
            if "origin" in headers and "access-control-request-method" in headers:
                await self._answer(headers, scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _answer(self, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        response = self.preflight_response(headers)
        if response.status_code >= 400:
            refused = bytes(response.body).decode().removeprefix("Disallowed CORS ")
            message = f"Pages of this origin may not send such requests (refused: {refused}); see --cors-origins."
            response = error_response(Forbidden(message), trace_of(scope))
            response.headers["vary"] = self.preflight_headers["Vary"]
        await response(scope, receive, send)


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Return the origins in lower case, as browsers send them. Raises InvalidSetting if one never would be sent."""
    if _ALL in origins and len(origins) > 1:
        raise InvalidSetting("cors_origins: * stands for all origins; do not list others beside it.")
    return tuple(origin if origin == _ALL else _check_origin(origin.lower()) for origin in origins)


def _check_origin(origin: str) -> str:
    if not _ORIGIN.fullmatch(origin):
        raise InvalidSetting(
            f"cors_origins: '{origin[:200]}' is not an origin. Write https://HOST or https://HOST:PORT, without a path "
            "or a slash at the end, and names with other letters as xn--…."
        )
    if origin.endswith(_DEFAULT_PORTS[urlsplit(origin).scheme]):
        raise InvalidSetting(f"cors_origins: browsers leave out the port of '{origin}'; leave it out as well.")
    return origin
