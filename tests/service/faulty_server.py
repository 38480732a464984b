"""`python -m tests.service.faulty_server`: `python -m service` with faults on demand.

In a request to a model like `credit`, an income of LOSES makes the device fail for good, and an income of HANGS blocks
its thread for ever. Each path below injects one fault:

- POST /fault/loop blocks the event loop;
- POST /fault/callback raises in a callback of the event loop that no part of the service owns;
- POST /fault/scheduler raises in a callback of the scheduler;
- POST /fault/thread raises in a thread;
- POST /fault/finalizer raises in the finalizer of an object.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.__main__ import serve
from service.backends.base import OpenBackend
from service.backends.fake import Condition, FakeBackend, Gate, device_lost, slow
from service.backends.onnx import OnnxRuntime
from service.engine.scheduler import Scheduler
from service.settings import read_settings
from tasks.contract import TensorSpec

LOSES, HANGS = 66.0, 77.0


def has_income(value: float) -> Condition:
    return lambda arrays: bool((arrays["numbers"][:, 0] == value).any())


def faulty_runtime(runtime: OpenBackend) -> OpenBackend:
    """Open the graphs of another runtime, and put faults in front of them."""

    def open_backend(graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> FakeBackend:
        faults = [slow(0.002), device_lost(has_income(LOSES)), Gate(has_income(HANGS))]
        return FakeBackend(runtime(graph, inputs, outputs).run, faults=faults)

    return open_backend


class FaultySource:
    """A source of work for the scheduler that raises when it is asked for its next job."""

    def next_work(self) -> None:
        raise LookupError("broken source")


class FaultyFinalizer:
    """An object that raises when it is deleted."""

    def __del__(self) -> None:
        raise LookupError("broken finalizer")


def raise_in_callback() -> None:
    raise LookupError("broken callback")


def raise_in_scheduler() -> None:
    def raise_again(error: BaseException) -> None:
        raise error

    scheduler = Scheduler(on_fault=raise_again)
    scheduler.attach(FaultySource())  # type: ignore[arg-type]
    scheduler.schedule_dispatch()


FAULTS: dict[str, Callable[[], object]] = {
    "/fault/loop": lambda: asyncio.get_running_loop().call_soon(time.sleep, 3600),
    "/fault/callback": lambda: asyncio.get_running_loop().call_soon(raise_in_callback),
    "/fault/scheduler": raise_in_scheduler,
    "/fault/thread": lambda: threading.Thread(target=raise_in_callback).start(),
    "/fault/finalizer": lambda: FaultyFinalizer() and None,
}


def add_faults(app: ASGIApp) -> ASGIApp:
    """Add the paths that inject faults to an application."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        inject = FAULTS.get(scope.get("path", ""))
        if inject is None:
            await app(scope, receive, send)
        else:
            await Response()(scope, receive, send)
            inject()

    return answer


if __name__ == "__main__":
    settings = read_settings(sys.argv[1:])
    sys.exit(serve(settings, faulty_runtime(OnnxRuntime("cpu", 1)), add_faults))
