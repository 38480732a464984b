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
from service.engine.memory_budget import MAX_WORK_BYTES
from service.engine.postprocessing import postprocess
from service.engine.preparation import PreparationRules, prepare
from service.engine.request import Parse
from service.errors import ServiceError
from tasks.contract import Answer, Arrays, Request, Samples, Task, build_task

_MAX_TASKS = 64
_TRIM_ABOVE_BYTES, _TRIM_ABOVE_TIGHT_BYTES = 64_000_000, 8_000_000
"""A process that has grown by more gives memory back at once, others when they have nothing to do. The second number
holds where memory is tight."""
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
    memory_bytes: int


@dataclass(frozen=True)
class PostprocessRequest:
    """Turns the outputs of a request's samples into the body of its answer, which is sent as a separate message."""

    key: int
    outputs: Arrays
    samples: Samples
    request: Request
    render: Callable[[Answer], bytes]
    budget_s: float
    memory_bytes: int


@dataclass(frozen=True)
class BodyFollows:
    """The answer to a PostprocessRequest; the next message is the body."""


@dataclass(frozen=True)
class TaskMissing:
    """The answer to a request for a task that this process does not have, or no longer has."""


@dataclass(frozen=True)
class MemoryExceeded:
    """The answer to a request that needs more memory than it was given."""


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
    start_bytes = _resident_bytes()
    known: OrderedDict[int, Task] = OrderedDict()
    is_trimmed = True
    with suppress(EOFError, OSError):
        while True:
            if not is_trimmed and not connection.poll(_IDLE_S):
                trim_heap()
                is_trimmed = True
            is_tight = _handle_message(connection, known, start_bytes)
            kept_bytes = _TRIM_ABOVE_TIGHT_BYTES if is_tight else _TRIM_ABOVE_BYTES
            is_trimmed = _resident_bytes() > start_bytes + kept_bytes
            if is_trimmed:
                trim_heap()


def _handle_message(connection: "Connection[Any, Any]", known: OrderedDict[int, Task], start_bytes: int) -> bool:
    """Answer one message, and return whether its memory was limited tightly.

    When it returns, nothing of the request is left in memory.
    """
    message = receive(connection)
    if isinstance(message, LoadTask):
        known[message.key] = message.spec.build()
        if len(known) > _MAX_TASKS:
            known.popitem(last=False)
        return False
    body = connection.recv_bytes() if isinstance(message, PrepareRequest) else b""
    answer = _answer(body, message, known.get(message.key))
    is_tight = bool(message.memory_bytes < MAX_WORK_BYTES)
    del body
    if is_tight and _resident_bytes() > start_bytes + _TRIM_ABOVE_TIGHT_BYTES:
        trim_heap()  # Before the answer: with it the server takes the memory to be free for the next request.
    send(connection, BodyFollows() if isinstance(answer, bytes) else answer)
    if isinstance(answer, bytes):
        connection.send_bytes(answer)
    return is_tight


def _answer(body: bytes, message: PrepareRequest | PostprocessRequest, task: Task | None) -> Any:
    if task is None:
        return TaskMissing()
    signal.setitimer(signal.ITIMER_PROF, message.budget_s)
    unlimited = _limit_memory(message.memory_bytes)
    try:
        if isinstance(message, PrepareRequest):
            return prepare(task, message.rules, body, message.parse)
        return postprocess(task, message.outputs, message.samples, message.request, message.render)
    except ServiceError as error:
        # Its traceback holds the frames that hold the body, in a cycle that is hardly ever collected here.
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)
    except MemoryError:
        return MemoryExceeded()
    except Exception:  # It is a fault of the service, and must not end the process.
        return WorkerFault(traceback.format_exc())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _prefer_for_out_of_memory_killer() -> None:
    """If the machine runs out of memory, this process is to be killed and not the server (proc(5), oom_score_adj)."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_memory(growth_bytes: int) -> tuple[int, int]:
    """Limit how far the address space may grow; return the limits before. Does nothing where /proc is missing."""
    soft, hard = before = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits = [pages * resource.getpagesize() + growth_bytes, *(limit for limit in (soft, hard) if limit >= 0)]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    return before


def _resident_bytes() -> int:
    return HostMemory().in_use() or 0
