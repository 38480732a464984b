"""`python -m service smoke --url URL`: ask a running server for one real prediction of each model.

What `helm test` runs. It needs nothing of the server but its HTTP interface: each model's page has an example request.
"""

import argparse
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.process.bearer_tokens import UnusableToken, check_token, read_token
from tasks.system_errors import describe_os_error

_KEY_VARIABLE = "SEVENFOLD_API_KEY"
_REQUEST_S = 60.0
_MAX_BYTES = 200_000_000
_INTERVAL_S = 0.5


class _NoAnswer(Exception):
    """Why a server did not answer a request."""


@dataclass(frozen=True)
class Server:
    """A server to ask.

    Attributes:
        url: its address, without a slash at the end.
        key: an API key; empty for none.
        context: how its certificate is verified.
    """

    url: str
    key: str = field(default="", repr=False)
    context: ssl.SSLContext | None = None

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the JSON of a response; None if it is no JSON. Raises _NoAnswer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data)  # noqa: S310 -- http or https, see `_parser`.
        request.add_header("Content-Type", "application/json")
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=_REQUEST_S, context=self.context) as response:  # noqa: S310
                return response.status, _json(response.read(_MAX_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _json(error.read(_MAX_BYTES))
        except (OSError, ValueError) as error:
            cause = getattr(error, "reason", error)
            reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__
            raise _NoAnswer(f"no answer from {self.url}: {reason}") from None


def wait_until_ready(
    server: Server,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str | None:
    """Wait until the server is ready to predict; return why it was not within that time, or None if it was.

    Where health has moved to another port (--admin-port), a server counts as ready when all of its models are.
    """
    deadline = clock() + seconds
    while True:
        try:
            problem = _unready_reason(server)
        except _NoAnswer as error:
            problem = str(error)
        if problem is None:
            return None
        if clock() >= deadline:
            return f"The server was not ready within {seconds:g} s: {problem.rstrip('.')}."
        sleep(_INTERVAL_S)


def _unready_reason(server: Server) -> str | None:
    """Return why a server is not ready, or None if it is. Raises _NoAnswer."""
    status, answer = server.ask("/health/ready")
    if status not in (200, 404):
        reason = answer.get("reason") if isinstance(answer, dict) else None
        return reason or f"/health/ready answered {status}"
    if status == 404:
        _, answer = server.ask("/v1/models")
        models = answer.get("models") if isinstance(answer, dict) else None  # If it is no list, `check` says why.
        waiting = [model["name"] for model in models or [] if model["state"] != "ready"]
        return f"not served: {', '.join(waiting)}" if waiting else None
    return None


def check(server: Server, report: Callable[[str], None]) -> list[str]:
    """Ask each model for a prediction; report a line for each, and return what failed."""
    try:
        status, answer = server.ask("/v1/models")
    except _NoAnswer as error:
        return [f"The models cannot be listed: {error}."]
    if status == 401:
        return [f"The server asks for an API key: give one with --api-key-file, or in {_KEY_VARIABLE}."]
    if status != 200 or not isinstance(answer, dict) or not isinstance(answer.get("models"), list):
        return [f"The models cannot be listed: {_problem(status, answer)}."]
    if not answer["models"]:
        return ["The server has no models."]
    failed = []
    for model in answer["models"]:
        started = time.monotonic()
        problem = _check_model(server, model)
        milliseconds = (time.monotonic() - started) * 1000
        name = f"{model['name']}/{model['version'] or '-'}"
        result = problem or f"{model['task']}, {milliseconds:.0f} ms"
        report(f"{'FAIL' if problem else 'ok  '} {name:24} {result}")
        failed += [f"{name}: {problem}"] if problem else []
    return failed


def _check_model(server: Server, model: dict[str, Any]) -> str | None:
    """Send a model its own example; return why that is no prediction."""
    if model["state"] != "ready":
        reasons = [version["reason"] for version in model["versions"] if version["reason"]]
        return f"not served: {' '.join(reasons) or 'no reason is given'}"
    path = f"/v1/models/{model['name']}"
    try:
        status, details = server.ask(path)
        if status != 200 or not isinstance(details, dict):
            return f"its page: {_problem(status, details)}"
        status, answer = server.ask(f"{path}/predict", details["example"])
    except _NoAnswer as error:
        return str(error)
    if status != 200 or not isinstance(answer, dict):
        return _problem(status, answer)
    if answer.get("model") != model["name"]:
        return f"the answer is one of {answer.get('model')!r}"
    return None


def _problem(status: int, answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return f"{status} {message}" if message else f"{status}, which is no answer of this server"


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def check_models(arguments: Sequence[str]) -> int:
    """Run the command line; return 0 if every model predicts, 1 if not, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        key = _read_key(options.api_key_file)
        context = ssl.create_default_context(cafile=options.ca_file) if options.url.startswith("https:") else None
    except OSError as error:  # Also what is wrong with a certificate.
        error.filename = error.filename or options.ca_file or options.api_key_file
        print(f"smoke: {describe_os_error(error)}", file=sys.stderr)
        return 2
    except UnusableToken as error:
        print(f"smoke: {error}", file=sys.stderr)
        return 2
    server = Server(options.url.rstrip("/"), key, context)
    unready = wait_until_ready(server, options.wait_seconds)
    failed = [unready] if unready else check(server, lambda line: print(line, flush=True))
    for problem in failed:
        print(f"smoke: {problem}", file=sys.stderr)
    if not failed:
        print("Every model answered its example.")
    return 1 if failed else 0


def _read_key(path: str | None) -> str:
    """Return the API key of a file, or else of the environment; empty without one. Raises OSError and UnusableToken."""
    if path:
        return read_token(Path(path))
    key = os.environ.get(_KEY_VARIABLE, "")
    return check_token(key, _KEY_VARIABLE) if key else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service smoke",
        description="Ask a running server for one prediction of each model.",
        epilog=f"The API key can also be set in the environment: {_KEY_VARIABLE}.",
        allow_abbrev=False,
    )
    parser.add_argument("--url", type=_address, required=True, metavar="URL", help="the server, as http://HOST:PORT")
    parser.add_argument("--api-key-file", metavar="FILE", help="a file with an API key")
    parser.add_argument(
        "--ca-file", metavar="FILE", help="the certificate that has signed the server's; default: the system's"
    )
    parser.add_argument(
        "--wait-seconds",
        type=float,
        default=120.0,
        metavar="N",
        help="how long the server may load models; default: 120",
    )
    return parser


def _address(text: str) -> str:
    if not re.fullmatch(r"https?://[^/?#@\s]+/?", text):
        raise argparse.ArgumentTypeError(f"must be http://HOST:PORT or https://HOST:PORT, not '{text}'")
    return text
