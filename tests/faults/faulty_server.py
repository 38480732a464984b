"""`python -m tests.faults.faulty_server`: `python -m service` with a backend that fails on command.

It is the same program, with the same flags and signals, and one more path:

    POST /faults {"marks": {DIGEST: [ACTION, AMOUNT]}}    mark samples or graphs, in place of those marked before
    POST /faults {"release": true}                        let the runs continue that are held
    POST /faults {"forget": true}                         forget what has been run
    POST /faults {"kill": "worker"}                       end a thread whose name starts like this when it next wakes
    GET  /faults                                          {"computed": {DIGEST: [BEGAN, COUNT]}, "runs": […], "held": n}
"""

import ctypes
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.__main__ import serve
from service.backends.base import BackendError
from service.backends.onnx import OnnxRuntime
from service.settings import InvalidSetting, read_settings
from tasks.manifest import BrokenModel
from tests.faults.faulty_backend import Faults, FaultyRuntime, marks_from_json

PATH = "/faults"


@dataclass(frozen=True)
class FaultControl:
    """Middleware that adds the path which controls the faults."""

    app: ASGIApp
    faults: Faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer requests to PATH, and pass all others on."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        if scope["method"] == "POST":
            self._execute(json.loads(await Request(scope, receive).body()))
        faults = self.faults
        state = {"computed": dict(faults.computed), "runs": list(faults.runs), "held": faults.held}
        await JSONResponse(state if scope["method"] == "GET" else {})(scope, receive, send)

    def _execute(self, command: dict[str, Any]) -> None:
        if "marks" in command:
            self.faults.marks = marks_from_json(command["marks"])
        if command.get("release"):
            self.faults.release()
        if command.get("forget"):
            self.faults.forget()
        if "kill" in command:
            _kill_thread(command["kill"])


def _kill_thread(prefix: str) -> None:
    """Raise SystemExit in a thread as soon as it runs Python code: between two jobs, where nothing expects it."""
    for thread in threading.enumerate():
        if thread.name.startswith(prefix):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
            return
    raise ValueError(f"There is no thread {prefix}: {[thread.name for thread in threading.enumerate()]}")


def main(arguments: Sequence[str]) -> int:
    """Run the server and return its exit status."""
    faults = Faults()
    try:
        settings = read_settings(arguments)
        runtime = FaultyRuntime(OnnxRuntime(settings.device, settings.threads), faults)
        return serve(settings, runtime, wrap=lambda app: FaultControl(app, faults))
    except (InvalidSetting, BackendError, BrokenModel) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
