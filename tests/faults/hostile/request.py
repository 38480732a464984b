"""What a hostile request is, and what the server must answer to it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from loadtests.clients import HUNG_UP, NO_RESPONSE, HangUp, Reply, prepare_request

BODY_BYTES = 19_500_000
"""Size of bodies that are as large as a server accepts by default, since their cost grows with it."""
_BUSY = frozenset({"overloaded", "deadline_exceeded"})
"""Codes of the 5xx errors that are right when a request is refused only because others are being answered."""
_SENTENCE = re.compile(r"\S.*[.!?:)\]'\"]", re.DOTALL)


@dataclass(frozen=True)
class HostileRequest:
    """A small request that could cost a server far more than its size.

    It has to be refused with a 4xx and a sentence that says why, or answered; in both cases within its budget.

    Attributes:
        name: what it is, unique.
        make: makes the bytes of the HTTP request, up to 20 MB: they are made when they are needed, and not kept.
        refused: whether it must be refused: an answer to it would be wrong, or cannot be had within any budget.
        hang_up: when its client closes the connection, if it does not wait for the response.
        may_close: whether the server may close the connection without a response, since this is not valid HTTP.
    """

    name: str
    make: Callable[[], bytes]
    refused: bool = False
    hang_up: HangUp | None = None
    may_close: bool = False

    def problem(self, reply: Reply) -> str | None:
        """Return why the reply is not what a hostile request has to get, or None."""
        if reply.status == HUNG_UP or (reply.status == NO_RESPONSE and self.may_close):
            return None
        if reply.status == NO_RESPONSE:
            return f"{self.name}: no response in {reply.seconds:.1f} s"
        if reply.status < 400:
            return f"{self.name}: {reply.status}, though it must be refused" if self.refused else None
        code, message = error_of(reply)
        if reply.status >= 500 and code not in _BUSY:
            return f"{self.name}: {reply.status} {code}: {message[:120]}"
        return None if _SENTENCE.fullmatch(message) else f"{self.name}: {reply.status} without a sentence: {message!r}"


def error_of(reply: Reply) -> tuple[str, str]:
    """Return code and message of an error; the HTTP parser sends its own as plain text, without a code."""
    try:
        error = json.loads(reply.body)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "", reply.body.decode("utf-8", "replace")


def predict(
    name: str, model: str, content_type: str, body: Callable[[], bytes], *, refused: bool = False, query: str = ""
) -> HostileRequest:
    """Make a hostile request for a prediction, whose body `body` makes."""
    path = f"/v1/models/{model}/predict{query}"
    return HostileRequest(name, lambda: prepare_request(path, content_type, body()), refused)


def get(name: str, path: str, *head: bytes, refused: bool = False) -> HostileRequest:
    """Make a hostile GET request with these further lines in its head."""
    return HostileRequest(
        name, lambda: b"\r\n".join([f"GET {path} HTTP/1.1".encode(), b"Host: x", *head, b"", b""]), refused
    )


def may_close(request: HostileRequest) -> HostileRequest:
    """Return the request as one whose connection may be closed without a response."""
    return replace(request, may_close=True)
