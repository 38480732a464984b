"""The requests of the comparison, and the answers that every server must give."""

import http.client
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.peers.environments import Unavailable
from benchmarks.peers.payloads import Payload, decode_answer, encode_payload
from benchmarks.peers.peers import Protocol
from benchmarks.serving import example_request, newest_version, predict_path
from tasks.goldens import first_difference

MODELS = ("clothing", "adult", "imdb")
"""A picture, a row and a text."""
TOLERANCE = 1e-3
"""How far a number of a peer's answer may differ from ours: batches are summed in another order."""
_REQUEST_S = 30.0


@dataclass(frozen=True)
class Question:
    """One request to one server, in the server's form.

    Attributes:
        path: the URL path.
        payload: headers and body.
        protocol: how to read the answer.
    """

    path: str
    payload: Payload
    protocol: Protocol

    def ask(self, port: int) -> tuple[int, Any]:
        """Send the request; return the status, and the JSON of the answer if it is 200, else the start of its body.

        Raises OSError or http.client.HTTPException if there is no answer, and ValueError if it holds no JSON.
        """
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_REQUEST_S)
        try:
            connection.request("POST", self.path, self.payload.body, self.payload.headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            return response.status, body[:200]
        return 200, decode_answer(self.protocol, {k.lower(): v for k, v in response.getheaders()}, body)


@dataclass
class ReadinessCheck:
    """Whether a server answers right: called until it does.

    Attributes:
        question: what to ask.
        expected: the right answer; None if any will do.
        patience_s: how long a server that listens may answer with an error, as some do while they load.
        clock: a monotonic clock, in seconds.
    """

    question: Question
    expected: Any
    patience_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _refused_since: float | None = None

    def __call__(self, port: int) -> bool:
        """Return whether the answer is right. Raises OSError without one, and Unavailable if it is wrong for good."""
        try:
            status, answer = self.question.ask(port)
        except ValueError as error:
            raise Unavailable(str(error)) from None
        if status == 200:
            if self.expected is not None:
                check_answer(self.expected, answer)
            return True
        now = self.clock()
        self._refused_since = now if self._refused_since is None else self._refused_since
        if now - self._refused_since > self.patience_s:
            raise Unavailable(f"It answers with status {status}: {answer!r:.300}")
        return False


def our_question(models: Path, name: str) -> Question:
    """Return the request to the service."""
    content_type, content = example_request(newest_version(models / name), name)
    return Question(predict_path(name), encode_payload("raw", content_type, content), "raw")


def peer_question(models: Path, name: str, path: str, protocol: Protocol) -> Question:
    """Return the same request to a peer."""
    content_type, content = example_request(newest_version(models / name), name)
    return Question(path, encode_payload(protocol, content_type, content), protocol)


def describe_payload(models: Path, name: str) -> str:
    """Return the size of the request for the reader: of a picture in pixels, else in bytes."""
    content_type, content = example_request(newest_version(models / name), name)
    if content_type.startswith("image/"):
        with Image.open(io.BytesIO(content)) as image:
            return f"{image.width}×{image.height}"
    return f"{len(content)} bytes"


def check_answer(expected: Any, actual: Any) -> None:
    """Raise Unavailable if the two answers differ by more than rounding; a null is as good as no field."""
    if difference := first_difference(_without_nulls(expected), _without_nulls(actual), TOLERANCE):
        raise Unavailable(f"It gives another answer than ours: {difference}.")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(field) for key, field in value.items() if field is not None}
    return [_without_nulls(element) for element in value] if isinstance(value, list) else value
