"""What to send: a pool of prepared bodies for each model, made from what a running server says about itself.

The list of models, each model's example and the media types that it takes come from the server, so that a new model or
a new task needs no change here. Only the standard library is used: Locust's workers import this module, too.
"""

import json
import logging
import mimetypes
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

JSON = "application/json"
_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 60.0
_MAX_FILES = 32
"""Files for each model: more of them would only cost memory."""
_MAX_FILE_BYTES = 20_000_000


class WorkloadError(Exception):
    """There is nothing that could be sent, or the server cannot be asked; the message says what to do."""


@dataclass(frozen=True)
class Body:
    """A body of a request, prepared once.

    Attributes:
        source: where it comes from, for messages.
    """

    content_type: str
    content: bytes
    source: str = "example"


@dataclass(frozen=True)
class ModelWorkload:
    """A model, and the bodies of which each request to it has one.

    Attributes:
        path: the path of its predictions, below the base URL.
    """

    name: str
    task: str
    path: str
    bodies: tuple[Body, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Server:
    """A server as a client knows it.

    Attributes:
        url: the base URL; it may have a path.
        verify: check the certificate of an https URL.
    """

    url: str
    api_key: str = ""
    verify: bool = True

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WorkloadError(f"'{self.url}' is no base URL; give one such as http://127.0.0.1:8000.")

    @property
    def headers(self) -> dict[str, str]:
        """Headers that every request needs."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def get(self, path: str) -> Any:
        """Return the JSON at a path. Raises WorkloadError."""
        status, content = self._request(path, None)
        if status != 200:
            raise WorkloadError(f"GET {self.url}{path} was answered with {status}: {_message(content)}{_hint(status)}")
        return json.loads(content)

    def post(self, path: str, body: Body) -> tuple[int, bytes]:
        """Send a body; return status and content of the response. Raises WorkloadError if there is none."""
        return self._request(path, body)

    def _request(self, path: str, body: Body | None) -> tuple[int, bytes]:
        headers = self.headers | ({"Content-Type": body.content_type} if body else {})
        address = self.url.rstrip("/") + path
        request = urllib.request.Request(address, body.content if body else None, headers)  # noqa: S310 -- see above.
        context = None
        if self.url.startswith("https:") and not self.verify:
            context = ssl._create_unverified_context()  # noqa: S323 -- asked for, and said in its help text.
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context) as response:  # noqa: S310
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except (OSError, ValueError) as error:
            raise WorkloadError(f"{address} cannot be reached: {error}. Is the server running?") from error


def _hint(status: int) -> str:
    return " Set --api-key." if status == 401 else ""


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace")


def discover(server: Server, *, files: Path | None = None, only: Sequence[str] = ()) -> list[ModelWorkload]:
    """Return a workload for each model that the server has ready.

    Each has the model's example as JSON, and files of the folder that the model takes as they are: those named after
    it (`NAME-….jpg`, or in a folder NAME) if there are any, else all of a type that it takes. Each body is sent once;
    one that the server refuses is left out, with a warning. Raises WorkloadError.
    """
    ready = [model for model in server.get("/v1/models")["models"] if model["state"] == "ready"]
    if missing := set(only) - {model["name"] for model in ready}:
        names = ", ".join(sorted(model["name"] for model in ready))
        raise WorkloadError(f"The server has no model {', '.join(sorted(missing))} that is ready. It has: {names}.")
    paths = server.get("/openapi.json")["paths"]
    wanted = [model for model in ready if not only or model["name"] in only]
    found = [_workload(server, model, paths, _files_in(files)) for model in wanted]
    if not found:
        raise WorkloadError(f"{server.url} has no model that is ready; see its /v1/models for the reasons.")
    return found


def _workload(
    server: Server, model: Mapping[str, Any], paths: Mapping[str, Any], files: Sequence[Path]
) -> ModelWorkload:
    name = model["name"]
    path = f"/v1/models/{name}/predict"
    example = server.get(f"/v1/models/{name}")["example"]
    bodies = [Body(JSON, json.dumps(example).encode())]
    bodies += _from_files(files, name, paths[path]["post"]["requestBody"]["content"])
    refusals, accepted = [], []
    for body in bodies:
        status, content = server.post(path, body)
        if status == 200:
            accepted.append(body)
        else:
            refusals.append(f"{body.source}: {status} {_message(content)}")
    for refusal in refusals:
        _LOG.warning("Not sent to %s: %s", name, refusal)
    if not accepted:
        raise WorkloadError(f"{name} refuses every body, so there is nothing to send to it: {refusals[0]}")
    return ModelWorkload(name, model["task"] or name, path, tuple(accepted))


def _files_in(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise WorkloadError(f"The folder {folder} does not exist; give --files another one.")
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size <= _MAX_FILE_BYTES)


def _from_files(files: Iterable[Path], name: str, content_types: Mapping[str, Any]) -> Iterator[Body]:
    """Yield a body for each file that a model may take, judged by the types in its description."""
    suitable = [(path, kind) for path in files if (kind := _content_type(path)) in content_types]
    own = [(path, kind) for path, kind in suitable if path.name.startswith(f"{name}-") or path.parent.name == name]
    for path, kind in (own or [pair for pair in suitable if pair[1] != JSON])[:_MAX_FILES]:
        yield Body(kind, path.read_bytes(), path.name)


def _content_type(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or ""


def parse_pairs(text: str, what: str, *, default: str = "all") -> dict[str, float]:
    """Parse NAME=NUMBER,…; a number alone counts for `default`. Raises WorkloadError."""
    values = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, number = part.rpartition("=")
        try:
            values[name if separator else default] = float(number)
        except ValueError:
            raise WorkloadError(f"{what}: '{part}' is not NAME=NUMBER, such as clothing=3.") from None
    if any(not 0 <= value < float("inf") for value in values.values()):
        raise WorkloadError(f"{what}: numbers must not be negative or infinite.")
    return values


def with_weights(workloads: Sequence[ModelWorkload], text: str) -> list[ModelWorkload]:
    """Return the workloads with these weights; those that are not named keep 1, and those of weight 0 are left out.

    Raises WorkloadError.
    """
    weights = parse_pairs(text, "--weights")
    default = weights.pop("all", 1.0)
    if unknown := weights.keys() - {workload.name for workload in workloads}:
        names = ", ".join(workload.name for workload in workloads)
        raise WorkloadError(f"--weights names {', '.join(sorted(unknown))}, which the server does not have: {names}.")
    weighted = [replace(workload, weight=weights.get(workload.name, default)) for workload in workloads]
    weighted = [workload for workload in weighted if workload.weight > 0]
    if not weighted:
        raise WorkloadError("--weights leaves no model; give at least one of them a weight above 0.")
    return weighted


def parse_server_timing(value: str) -> dict[str, float]:
    """Return the milliseconds of each stage in a Server-Timing header; what is not `name;dur=number` is ignored."""
    stages = {}
    for part in value.split(","):
        name, _, parameters = part.strip().partition(";")
        for parameter in parameters.split(";"):
            key, _, number = parameter.strip().partition("=")
            if name and key == "dur":
                try:
                    stages[name] = float(number.strip('"'))
                except ValueError:
                    continue
    return stages
