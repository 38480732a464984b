"""Worker processes that prepare requests and large answers, so that no client can block the server's interpreter.

Decoders written in C may hold the interpreter's lock for seconds and cannot be interrupted in a thread. A process can
be killed, and its memory returns to the system. Each process is driven by a thread of the server, which waits for it
without holding the lock.
"""

import logging
import queue
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from threading import Lock
from typing import Any

from service.decoding.channel import receive_with_size, send
from service.decoding.fork_server import ForkedProcess, ForkServer
from service.decoding.worker import (
    BodyFollows,
    LoadTask,
    MemoryExceeded,
    PostprocessRequest,
    PrepareRequest,
    TaskMissing,
    TaskSpec,
    WorkerFault,
)
from service.engine.memory_budget import MAX_WORK_BYTES, MemoryBudget
from service.engine.preparation import BudgetExceeded, Preparation, PreparationRules, SeveralPreparations
from service.engine.request import Body, PredictRequest
from service.errors import (
    InternalError,
    InvalidAnswer,
    NoMemory,
    Overloaded,
    ServiceError,
    Stopped,
    TooLarge,
    Unreadable,
)
from tasks.contract import Answer, Arrays, Request, Samples, Task, files_of, parameters_of

WorkerRequest = PrepareRequest | PostprocessRequest

_LOG = logging.getLogger(__name__)
_WALL_FACTOR = 8.0
"""A process gets this many seconds for each second of its budget. It needs more than one where the machine is busy."""
_MIN_WALL_S = 10.0
_STOP_TIMEOUT_S = 1.0


class MemoryShort(TooLarge):
    """A request needs more memory than its process was given."""

    def __init__(self, memory_bytes: int) -> None:
        super().__init__(
            f"This input needs more memory than the {memory_bytes // 1_000_000:,} MB that one request may use on this "
            "server; send a smaller one."
        )


@dataclass(frozen=True)
class Budget:
    """Processor time for preparing a request, in seconds: a fixed part, and a part for each byte of the body."""

    fixed_s: float
    per_byte_s: float = 0.0


@dataclass(eq=False)
class DecoderPool:
    """A fixed number of worker processes. All methods may be called from any thread.

    Attributes:
        fork_server: starts the processes.
        size: number of processes; they are started when they are first needed.
        warm: number of processes that know every task before its first request.
        budgets: processor time for preparing a request, at each attempt.
        postprocess_s: processor time for an answer, in seconds.
        memory: says how much memory a process may use for a request.
        on_killed: called with the reason when a process has ended within a request: retried (it exceeded a budget that
            is not the last one, so the request is prepared again), budget, stalled, killed or crashed.
    """

    fork_server: ForkServer
    size: int
    warm: int
    budgets: tuple[Budget, ...]
    postprocess_s: float = 10.0
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    on_killed: Callable[[str], None] = lambda reason: None
    _idle: "queue.LifoQueue[ForkedProcess | None]" = field(default_factory=queue.LifoQueue, init=False)
    """The process used last is used next, so that no more processes grow than run at a time."""
    _keys: Any = field(default_factory=count, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)
    _running: set[ForkedProcess] = field(default_factory=set, init=False)
    _is_closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for _ in range(self.size):
            self._idle.put(None)  # A place for a process.

    @property
    def running(self) -> int:
        """The number of processes that have been started and live."""
        return len(self._running)

    def register(self, task: Task) -> "IsolatedTask":
        """Return the task as worker processes know it. Processes that are busy build it with its first request."""
        registered = IsolatedTask(self, next(self._keys), task)
        message = registered.load_message()
        with ExitStack() as stack:
            for _ in range(self.warm):
                with suppress(queue.Empty, OSError, ServiceError):  # It is built with its first request, then.
                    send(stack.enter_context(self._borrow(block=False)).connection, message)
        return registered

    def prepare(
        self, task: "IsolatedTask", rules: PreparationRules, request: PredictRequest, attempt: int
    ) -> Preparation | SeveralPreparations:
        """Prepare a request in a worker process, and wait for the result. Raises ServiceError and BudgetExceeded."""
        budget = self.budgets[attempt]
        budget_s = budget.fixed_s + budget.per_byte_s * len(request.body)
        memory_bytes = self.memory.decoding_bytes(attempt, request.size)
        message = PrepareRequest(task.key, rules, request.parse, budget_s, memory_bytes)
        try:
            prepared: Preparation | SeveralPreparations = self._run(task, message, request.body)
        except MemoryShort as error:
            if self.memory.decoding_bytes(attempt + 1, request.size) > memory_bytes:
                raise BudgetExceeded(error) from None  # There is more at the next attempt.
            raise
        except BudgetExceeded:
            self.on_killed("budget" if attempt == len(self.budgets) - 1 else "retried")
            raise
        return prepared

    def postprocess(
        self,
        task: "IsolatedTask",
        outputs: Arrays,
        samples: Samples,
        request: Request,
        render: Callable[[Answer], bytes],
    ) -> bytes:
        """Turn outputs into the body of an answer in a worker process, and wait for it. Raises ServiceError."""
        output_bytes = sum(array.nbytes for array in outputs.values())
        memory_bytes = self.memory.encoding_bytes(output_bytes, samples.work)
        message = PostprocessRequest(task.key, outputs, samples, request, render, self.postprocess_s, memory_bytes)
        try:
            body: bytes = self._run(task, message)
        except BudgetExceeded as error:
            self.on_killed("budget")
            raise InvalidAnswer("Encoding the answer took too long.") from error
        return body

    def _run(self, task: "IsolatedTask", message: WorkerRequest, body: Body | None = None) -> Any:
        with self._borrow() as worker_process:
            result = self._ask(worker_process, message, body)
            if isinstance(result, TaskMissing):
                result = self._ask(worker_process, message, body, task.load_message())
        if isinstance(result, ServiceError):
            raise result
        if isinstance(result, MemoryExceeded):
            raise MemoryShort(message.memory_bytes)
        if isinstance(result, WorkerFault | TaskMissing):
            fields = {"traceback": result.text if isinstance(result, WorkerFault) else "The task was not built."}
            _LOG.error("unexpected error in a worker process", extra={"fields": fields})
            raise InternalError("Internal error. The server's log has the details under this request_id.")
        return result

    def close(self) -> None:
        """End all processes. Requests that are being prepared raise Stopped."""
        with self._lock:
            self._is_closed = True
            running, self._running = self._running, set()
        for worker_process in running:
            worker_process.kill()  # The thread that waits for its answer then closes it.
        places: list[ForkedProcess | None] = []
        with suppress(queue.Empty):
            while True:
                places.append(self._idle.get_nowait())
        for idle in places:
            if idle is not None:
                idle.close()
            self._idle.put(None)

    @contextmanager
    def _borrow(self, *, block: bool = True) -> Iterator[ForkedProcess]:
        """Wait for an idle process, start it if necessary, and give it back if it is still alive.

        Raises queue.Empty if none is idle and `block` is false.
        """
        worker_process = self._idle.get(block)
        try:
            if worker_process is not None and worker_process.join(0.0) is not None:
                self._discard(worker_process)  # It has died while it was idle.
                worker_process = None
            worker_process = worker_process or self._start()
            yield worker_process
        finally:
            is_usable = worker_process is not None and worker_process in self._running
            self._idle.put(worker_process if is_usable else None)

    def _discard(self, worker_process: ForkedProcess) -> None:
        with self._lock:
            self._running.discard(worker_process)
        worker_process.close()

    def _start(self) -> ForkedProcess:
        with self._lock:
            if self._is_closed:
                raise _stopped()
        try:
            started = self.fork_server.fork()
        except OSError as error:
            _LOG.exception("no worker process could be started")
            raise NoMemory(f"The server cannot start a process: {error.strerror}.", retry_after_s=1) from None
        with self._lock:
            if not self._is_closed:
                self._running.add(started)
                return started
        started.kill()
        started.close()
        raise _stopped()

    def _ask(
        self, worker_process: ForkedProcess, message: WorkerRequest, body: Body | None, load: LoadTask | None = None
    ) -> Any:
        """Send a request to a process, after the task if it is given; return the answer.

        Raises ServiceError and BudgetExceeded if the process ends instead.
        """
        connection, wall_s = worker_process.connection, max(_MIN_WALL_S, _WALL_FACTOR * message.budget_s)
        try:
            if load is not None:
                send(connection, load)
            send(connection, message)
            if body is not None:
                connection.send_bytes(body)
            if connection.poll(wall_s):
                answer, size = receive_with_size(connection)
                if isinstance(answer, Preparation | SeveralPreparations):
                    return replace(answer, held_bytes=size)
                return connection.recv_bytes() if isinstance(answer, BodyFollows) else answer
        except (EOFError, OSError):
            raise self._remove(worker_process, message) from None
        except BaseException:
            self._remove(worker_process, message)  # Half a message may be left in the connection.
            raise
        raise self._remove(worker_process, message)

    def _remove(self, worker_process: ForkedProcess, message: WorkerRequest) -> Exception:
        """End a process that does not answer, and return the error for the request that it had."""
        exit_code = worker_process.join(_STOP_TIMEOUT_S)
        worker_process.kill()
        self._discard(worker_process)
        is_closed = self._is_closed
        if is_closed:
            return _stopped()
        if exit_code == -signal.SIGABRT and message.memory_bytes < MAX_WORK_BYTES:
            return MemoryShort(message.memory_bytes)  # Libraries written in Rust and C++ abort if they get no memory.
        reason, error = _explain_exit(exit_code, message.budget_s)
        if reason == "budget":
            return BudgetExceeded(error)  # The caller knows whether there is another attempt.
        self.on_killed(reason)
        _LOG.warning("worker process ended", extra={"fields": {"reason": reason, "exit_code": exit_code}})
        return error


@dataclass(frozen=True, eq=False)
class IsolatedTask:
    """A task, and the key by which worker processes know it."""

    pool: DecoderPool
    key: int
    task: Task

    def load_message(self) -> LoadTask:
        """Return the message that makes a worker process build the task."""
        return LoadTask(self.key, TaskSpec(type(self.task), parameters_of(self.task), files_of(self.task)))

    def prepare(
        self, rules: PreparationRules, request: PredictRequest, attempt: int
    ) -> Preparation | SeveralPreparations:
        """Prepare a request with the budget of this attempt, from 0. Raises ServiceError and BudgetExceeded."""
        return self.pool.prepare(self, rules, request, attempt)

    def postprocess(
        self, outputs: Arrays, samples: Samples, request: Request, render: Callable[[Answer], bytes]
    ) -> bytes:
        """Return the body of an answer. Raises ServiceError."""
        return self.pool.postprocess(self, outputs, samples, request, render)


def _explain_exit(exit_code: int | None, budget_s: float) -> tuple[str, ServiceError]:
    """Return why a process ended, and the error for its request. A process without an exit code has not ended."""
    if exit_code is None:
        return "stalled", Overloaded("The input could not be decoded in time: the server is busy.", retry_after_s=1)
    if exit_code == -signal.SIGPROF:
        message = (
            f"Decoding this input takes more than {budget_s:.1f} s of processor time, which is more than any ordinary "
            "file of its size needs. Convert it to a plain JPEG or PNG, or send a smaller one."
        )
        return "budget", Unreadable(message)
    if exit_code == -signal.SIGKILL:
        return "killed", NoMemory("The server ran out of memory while decoding this input.", retry_after_s=1)
    return "crashed", Unreadable("The input made the decoder crash; it cannot be read.")


def _stopped() -> Stopped:
    return Stopped("The server shut down before the answer was ready. Retry.", retry_after_s=1)
