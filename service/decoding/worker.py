"""The program of a worker process: prepares requests or answers, one at a time, with a budget of processor time each.

A request that exceeds its budget ends the process: the kernel's profiling timer sends SIGPROF, whose default action is
to terminate, whatever code runs and whichever lock it holds. The server starts another one.
"""

import resource
import signal
import traceback
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from PIL import Image

import tasks
from service.backends.memory import HostMemory, trim_heap
from service.decoding.channel import receive, send
from service.engine.postprocessing import postprocess
from service.engine.preparation import PreparationRules, prepare
from service.engine.request import Parse
from service.errors import ServiceError, TooLarge
from tasks.contract import Answer, Arrays, Request, Samples, Task, build_task

MAX_MEMORY_BYTES = 1_500_000_000
"""Memory that a worker may use besides what it has at its start: some copies of the largest image."""
_MAX_TASKS = 64
_TRIM_ABOVE_BYTES = 64_000_000
"""A process that has grown by more gives memory back at once, others when they have nothing to do."""
_IDLE_S = 1.0


@dataclass(frozen=True)
class TaskSpec:
    """What a task is built from: its class, its parameters, and the contents of its files."""

    kind: type[Task]
    parameters: dict[str, Any]
    files: dict[str, str]

    def build(self) -> Task:
        """Return the task."""
        return build_task(self.kind, self.parameters, self.files)


@dataclass(frozen=True)
class LoadTask:
    """Builds a task and keeps it under a key."""

    key: int
    spec: TaskSpec


@dataclass(frozen=True)
class PrepareRequest:
    """Prepares a request, whose body is sent as a separate message, for a task that was loaded before."""

    key: int
    rules: PreparationRules
    parse: Parse
    budget_s: float


@dataclass(frozen=True)
class PostprocessRequest:
    """Turns the outputs of a request's samples into the body of its answer, which is sent as a separate message."""

    key: int
    outputs: Arrays
    samples: Samples
    request: Request
    render: Callable[[Answer], bytes]
    budget_s: float


@dataclass(frozen=True)
class BodyFollows:
    """The answer to a PostprocessRequest; the next message is the body."""


@dataclass(frozen=True)
class TaskMissing:
    """The answer to a request for a task that this process does not have, or no longer has."""


@dataclass(frozen=True)
class WorkerFault:
    """An unexpected exception, as the text of its traceback."""

    text: str


def preload() -> None:
    """Import what decoding needs, so that forked processes share it. A task that cannot be imported is left out."""
    import_module("service.decoding.body_formats")
    for module in iter_modules(tasks.__path__):
        with suppress(Exception):
            import_module(f"tasks.{module.name}")
    Image.init()  # Imports Pillow's decoders: in a process that has just been forked, that costs more than most images.
    with suppress(ImportError):
        import_module("pillow_heif")


def run(connection: "Connection[Any, Any]") -> None:
    """Answer messages until the server closes its side."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _prefer_for_out_of_memory_killer()
    start_bytes = _limit_memory()
    known: OrderedDict[int, Task] = OrderedDict()
    is_trimmed = True
    with suppress(EOFError, OSError):
        while True:
            if not is_trimmed and not connection.poll(_IDLE_S):
                trim_heap()
                is_trimmed = True
            _handle_message(connection, known)
            is_trimmed = _resident_bytes() > start_bytes + _TRIM_ABOVE_BYTES
            if is_trimmed:
                trim_heap()


def _handle_message(connection: "Connection[Any, Any]", known: OrderedDict[int, Task]) -> None:
    """Answer one message. When it returns, nothing of the request is left in memory."""
    message = receive(connection)
    if isinstance(message, LoadTask):
        known[message.key] = message.spec.build()
        if len(known) > _MAX_TASKS:
            known.popitem(last=False)
        return
    body = connection.recv_bytes() if isinstance(message, PrepareRequest) else b""
    answer = _answer(body, message, known.get(message.key))
    send(connection, BodyFollows() if isinstance(answer, bytes) else answer)
    if isinstance(answer, bytes):
        connection.send_bytes(answer)


def _answer(body: bytes, message: PrepareRequest | PostprocessRequest, task: Task | None) -> Any:
    if task is None:
        return TaskMissing()
    signal.setitimer(signal.ITIMER_PROF, message.budget_s)
    try:
        if isinstance(message, PrepareRequest):
            return prepare(task, message.rules, body, message.parse)
        return postprocess(task, message.outputs, message.samples, message.request, message.render)
    except ServiceError as error:
        return error
    except MemoryError:
        return TooLarge("This input needs more memory than one request may use; send a smaller one.")
    except Exception:  # It is a fault of the service, and must not end the process.
        return WorkerFault(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _prefer_for_out_of_memory_killer() -> None:
    """If the machine runs out of memory, this process is to be killed and not the server (proc(5), oom_score_adj)."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_memory() -> int:
    """Limit the address space; return the resident bytes now. Does nothing where /proc is missing."""
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + MAX_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    return _resident_bytes()


def _resident_bytes() -> int:
    return HostMemory().in_use() or 0
