"""`python -m tests.service.breakable`: `python -m service`, and ways to break its device and its event loop.

An income of LOSES makes the device fail for good, one of HANGS keeps its thread for ever. POST /break/loop blocks the
event loop, /break/callback raises in a callback of nobody's, /break/scheduler in one of the scheduler's, /break/thread
in a thread, and /break/finalizer where something is thrown away.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.__main__ import serve
from service.backends.base import Backend, DeviceLost
from service.backends.onnx import OnnxRuntime
from service.engine.scheduler import Scheduler
from service.process.logging import set_up_logging
from service.settings import read_settings
from tasks.contract import Arrays, TensorSpec

LOSES, HANGS = 66.0, 77.0


@dataclass(frozen=True)
class BreakableBackend:
    real: Backend
    device: str = "fake"

    def run(self, arrays: Arrays) -> Arrays:
        time.sleep(0.002)  # What it costs: too much to be run on the event loop.
        incomes = arrays["numbers"][:, 0]
        if LOSES in incomes:
            raise DeviceLost("CUDA failure 700: an illegal memory access was encountered")
        if HANGS in incomes:
            threading.Event().wait()
        return self.real.run(arrays)

    run_exclusive = run

    def release(self) -> None:
        """It keeps nothing."""

    def memory_in_use(self) -> None:
        """It does not know."""

    memory_free = memory_in_use


@dataclass(frozen=True)
class BreakableRuntime:
    real: OnnxRuntime

    def __call__(
        self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> BreakableBackend:
        return BreakableBackend(self.real(graph, inputs, outputs))


class BrokenSource:
    """Something that waits for a device, and is broken."""

    def next_work(self) -> None:
        raise LookupError("broken source")


def raise_in_callback() -> None:
    raise LookupError("broken callback")


class Unforgotten:
    """Something that cannot be thrown away."""

    def __del__(self) -> None:
        raise LookupError("broken finalizer")


def raise_in_scheduler() -> None:
    def give_up(error: BaseException) -> None:
        raise error

    scheduler = Scheduler(on_fault=give_up)
    scheduler.attach(BrokenSource())  # type: ignore[arg-type]
    scheduler.schedule_dispatch()


BREAKS: dict[str, Callable[[], object]] = {
    "/break/loop": lambda: asyncio.get_running_loop().call_soon(time.sleep, 3600),
    "/break/callback": lambda: asyncio.get_running_loop().call_soon(raise_in_callback),
    "/break/scheduler": raise_in_scheduler,
    "/break/thread": lambda: threading.Thread(target=raise_in_callback).start(),
    "/break/finalizer": lambda: Unforgotten() and None,
}


def breakable(app: ASGIApp) -> ASGIApp:
    """The application, with the paths that break it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        do = BREAKS.get(scope.get("path", ""))
        if do is None:
            await app(scope, receive, send)
        else:
            await Response()(scope, receive, send)
            do()

    return answer


if __name__ == "__main__":
    settings = read_settings(sys.argv[1:])
    set_up_logging(settings.log_level)
    sys.exit(serve(settings, BreakableRuntime(OnnxRuntime("cpu", 1)), breakable))
