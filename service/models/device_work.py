"""Where the device work of loading a version is done: directly at start, through the device's scheduler afterwards.

While clients are served, verification, warm-up and measurements compete with them for the device. Each of their runs is
then a job of its own with low priority: the scheduler orders it with the batches of clients, reserves its memory, and
notices if it hangs.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from service.backends.base import BackendError
from service.engine.context import WorkerPool
from service.engine.queue import StepQueue
from service.engine.scheduler import Deadline
from tasks.contract import Arrays

T = TypeVar("T")
ALL_MEMORY = 2**62
"""Bytes that no device has: a job that reserves them runs while nothing else does."""
_TARGET_S = 1.0
"""How long a run may wait behind the batches of clients, which are due within milliseconds. Loading a version takes a
hundred runs, so that this bounds how long a busy device delays it."""
_POLL_S = 0.5
_STOPPING = "The server is stopping."


class Submit(Protocol):
    """Runs work on a device and waits for it."""

    def __call__(self, work: Callable[[], T], memory_bytes: int = 0, /) -> T:
        """Return the result of the work, for which so much memory is reserved."""
        ...


def run_directly(work: Callable[[], T], memory_bytes: int = 0, /) -> T:  # noqa: ARG001 -- a `Submit`
    """Run the work in this thread; nothing else may use the device."""
    return work()


@dataclass(frozen=True)
class DeviceWork:
    """Runs work on one device, on behalf of one version that is being loaded.

    Attributes:
        submit: runs it.
        estimate_bytes: estimates the memory that a run with these inputs needs besides the model itself.
    """

    submit: Submit = run_directly
    estimate_bytes: Callable[[Arrays], int] = lambda arrays: 0

    def run(self, work: Callable[[], T], arrays: Arrays) -> T:
        """Return the result of work that runs the graph on these inputs."""
        return self.submit(work, self.estimate_bytes(arrays))

    def run_alone(self, work: Callable[[], T]) -> T:
        """Return the result of work during which nothing else may use the device."""
        return self.submit(work, ALL_MEMORY)


class ScheduledWork:
    """Submits work to a device's scheduler from a thread that is not the event loop's.

    Args:
        pool: the device's threads and scheduler.
        loop: the event loop that the scheduler belongs to.
    """

    def __init__(self, pool: WorkerPool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._queue = StepQueue(pool.scheduler)

    def __call__(self, work: Callable[[], T], memory_bytes: int = 0, /) -> T:
        """Return the result of the work. Raises what it raises, HungRun, and BackendError if the server stops."""
        job = self._run(work, memory_bytes)
        try:
            running = asyncio.run_coroutine_threadsafe(job, self._loop)
        except RuntimeError:  # The loop is closed.
            job.close()
            raise BackendError(_STOPPING) from None
        while True:
            try:
                result: T = running.result(_POLL_S)
            except StillRunning:  # The class is also that of a work's own TimeoutError.
                if running.done():
                    raise
                if self._loop.is_closed():
                    job.close()  # It may never have started.
                    raise BackendError(_STOPPING) from None
            except CancelledError:
                raise BackendError(_STOPPING) from None
            else:
                return result

    async def _run(self, work: Callable[[], Any], memory_bytes: int) -> Any:
        loop = asyncio.get_running_loop()
        deadline = Deadline(loop.time() + _TARGET_S)

        def start() -> asyncio.Future[Any]:
            try:
                return loop.run_in_executor(self._pool.threads, work)
            except RuntimeError:  # The threads have been shut down.
                raise BackendError(_STOPPING) from None

        return await self._queue.run(start, deadline, memory_bytes=memory_bytes)
