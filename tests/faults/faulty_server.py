"""`python -m tests.faults.faulty_server`: `python -m service` with a runtime that can be told to fail.

The same program, flags and signals; under /faults it is told what to do, and asked what it has done.

    POST /faults {"marks": {DIGEST: [ACTION, AMOUNT]}}    marks samples or graphs, in place of those marked before
    POST /faults {"release": true}                        lets go of the runs that are held
    POST /faults {"forget": true}                         forgets what was run
    POST /faults {"kill": "worker"}                       ends a thread whose name begins so, when it next wakes
    GET  /faults                                          {"computed": {DIGEST: [BEGAN, TIMES]}, "runs": […], "held": n}
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
from service.process.logging import set_up_logging
from service.settings import InvalidSetting, read_settings
from tasks.manifest import BrokenModel
from tests.faults.faulty_backend import Faults, FaultyRuntime, marks_from

PATH = "/faults"


@dataclass(frozen=True)
class Controlled:
    """The application, and beside it the path by which its faults are controlled."""

    app: ASGIApp
    faults: Faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers under PATH, and passes everything else on."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        if scope["method"] == "POST":
            self._do(json.loads(await Request(scope, receive).body()))
        faults = self.faults
        state = {"computed": dict(faults.computed), "runs": list(faults.runs), "held": faults.held}
        await JSONResponse(state if scope["method"] == "GET" else {})(scope, receive, send)

    def _do(self, wanted: dict[str, Any]) -> None:
        if "marks" in wanted:
            self.faults.marks = marks_from(wanted["marks"])
        if wanted.get("release"):
            self.faults.release()
        if wanted.get("forget"):
            self.faults.forget()
        if "kill" in wanted:
            _kill_a_thread(wanted["kill"])


def _kill_a_thread(beginning: str) -> None:
    """Raises SystemExit in a thread, as soon as it runs Python: outside of all work, where nothing expects it."""
    for thread in threading.enumerate():
        if thread.name.startswith(beginning):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
            return
    raise ValueError(f"There is no thread {beginning}: {[thread.name for thread in threading.enumerate()]}")


def main(arguments: Sequence[str]) -> int:
    """Runs the server; the exit status."""
    faults = Faults()
    try:
        settings = read_settings(arguments)
        set_up_logging(settings.log_level)
        runtime = FaultyRuntime(OnnxRuntime(settings.device, settings.threads), faults)
        return serve(settings, runtime, wrap=lambda app: Controlled(app, faults))
    except (InvalidSetting, BackendError, BrokenModel) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
