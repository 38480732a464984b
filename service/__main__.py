"""`python -m service`: reads the settings, serves until it is told to stop, and stops without losing anything."""

import asyncio
import json
import logging
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import create_app
from service.backends.base import BackendError, OpenBackend
from service.models.repository import Model
from service.process.logging import set_up_logging
from service.process.watchdog import EXIT_BROKEN, Watchdog
from service.server import Service
from service.settings import InvalidSetting, Settings, flag_parser, read_settings
from tasks.manifest import BrokenModel

_LOG = logging.getLogger(__name__)
_SWITCH_S = 0.0001
_MAX_EXAMPLE_BYTES = 2_000
"""Characters of a body that still make a line to copy."""
_LAST_MOMENT_S = 1
"""How long a process that is lost goes on, twice: to be seen, and to answer what is under way."""
_MARGIN_S = 4.0
"""What ending may take beyond the grace time, before the process is ended from outside its event loop."""


class _Server(uvicorn.Server):
    """uvicorn, but readiness falls first, and the address is printed once the models are ready."""

    def __init__(self, config: uvicorn.Config, service: Service, listening: socket.socket, watchdog: Watchdog) -> None:
        super().__init__(config)
        self._service = service
        self._socket = listening
        self._watchdog = watchdog

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._watchdog.watch(loop)
        await super().startup(sockets)
        if self.started:
            self._greeting = asyncio.create_task(self._greet())
            self._service.liveness.on_lost(partial(self._tell_of_loss, loop))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was accepted; the watchdog sees to it that this ends, also where something never returns."""
        grace_s = self.config.timeout_graceful_shutdown or 0
        self._watchdog.end_within(grace_s + _MARGIN_S, EXIT_BROKEN)
        await super().shutdown(sockets)

    def _tell_of_loss(self, loop: asyncio.AbstractEventLoop, reason: str) -> None:
        """In whichever thread it was noticed."""
        with suppress(RuntimeError):  # The loop is closed: the process ends in any case.
            loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        """Ends a process that is lost: it still answers, and for a moment it can be asked what is wrong."""
        self._watchdog.end_within(2 * _LAST_MOMENT_S + _MARGIN_S, EXIT_BROKEN)
        self.config.timeout_graceful_shutdown = min(self.config.timeout_graceful_shutdown or 0, _LAST_MOMENT_S)
        asyncio.get_running_loop().call_later(_LAST_MOMENT_S, setattr, self, "should_exit", True)

    async def _greet(self) -> None:
        await self._service.loaded.wait()
        host, port = self._socket.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        print(greeting(address, list(self._service.repository.served())), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: not ready; after `drain_seconds`, no new connections. Second signal: at once."""
        seconds = self._service.settings.drain_seconds
        again, self._service.draining = self._service.draining, True
        if again:
            self.force_exit = True
        if again or sig != signal.SIGTERM or not seconds:
            self._stop(sig, frame)
        else:
            _LOG.info("draining", extra={"fields": {"seconds": seconds}})
            asyncio.get_running_loop().call_later(seconds, self._stop, sig, frame)

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # uvicorn would raise the signal anew once it has stopped; to be told to stop and to stop well is exit code 0.
        self._captured_signals.clear()


def greeting(address: str, models: Sequence[Model]) -> str:
    """What stands on the terminal once the models are ready: the address, and a line to try for each model."""
    lines = [f"Sevenfold serves {len(models)} models at {address}    (docs: {address}/docs)", ""]
    for model in models:
        lines += [f"  # {model.manifest.title}", f"  {curl_line(address, model)}", ""]
    return "\n".join(lines)


def curl_line(address: str, model: Model) -> str:
    """A command that asks this model, to be typed in the folder the server was started in."""
    url = f"{address}/v1/models/{model.manifest.name}/predict"
    upload, body = model.task.upload, json.dumps(model.example)
    files = sorted(Path("examples").glob(f"{model.manifest.name}-*"))
    if upload is not None and (files or len(body) > _MAX_EXAMPLE_BYTES):
        return f"curl -F {upload.field}=@{files[0] if files else 'FILE'} {url}{_as_file(model)}"
    if len(body) > _MAX_EXAMPLE_BYTES:
        return f"curl {url.removesuffix('/predict')}    # its 'example' is a body for POST {url}"
    return f"curl -H 'Content-Type: application/json' -d {shlex.quote(body)} {url}"


def _as_file(model: Model) -> str:
    """What makes a picture of the answer, where it can be one: in JSON it would fill the terminal with base64."""
    representation = next(
        (representation for representation in model.task.representations if representation.file), None
    )
    if representation is None:
        return ""
    kind = representation.media_type.partition("/")[2].partition(";")[0]
    return f" -H 'Accept: {representation.media_type}' -o {model.manifest.name}.{kind}"


@dataclass(frozen=True)
class _Leaving:
    """Middleware: asks clients to open another connection next time, while this process is about to end."""

    app: ASGIApp
    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and (self.service.draining or self.service.liveness.lost):
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self.app(scope, receive, send_and_close)


def serve(
    settings: Settings,
    open_backend: OpenBackend | None = None,
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> int:
    """Serves until it is told to stop; the exit status: 0 where it stopped well, 70 where the process was lost.

    `open_backend` is the runtime, by default ONNX Runtime; `wrap` may put something around the application. Does not
    return where a thread never returns to its pool: Python would wait for that, so the process is ended from here.
    Raises InvalidSetting, BackendError and BrokenModel where it cannot begin.
    """
    # Workers that decode in Python hold the interpreter for this long at a time, and the event loop waits as often as
    # it receives or sends: with Python's 5 ms a refusal took 80 ms under overload.
    sys.setswitchinterval(_SWITCH_S)
    _log_what_nobody_catches()
    listening = _listen(settings.host, settings.port)
    service = Service(settings, open_backend)
    config = uvicorn.Config(
        _Leaving(wrap(create_app(service)), service),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(settings.grace_seconds),
        server_header=False,
    )
    watchdog = Watchdog(settings.hang_seconds)
    server = _Server(config, service, listening, watchdog)
    watchdog.start()
    server.run([listening])
    if not server.started:
        return 1
    code = EXIT_BROKEN if service.liveness.lost else 0
    _end_threads(service, code)
    watchdog.stop()
    return code


def _log_what_nobody_catches() -> None:
    """Errors that end a thread, or that Python can raise to nobody, are lines of the log as all others are."""

    def on_thread(died: threading.ExceptHookArgs) -> None:
        _LOG.critical("a thread has died", exc_info=died.exc_value)

    def on_unraisable(ignored: Any) -> None:
        _LOG.error("an error that could be raised to nobody: %s", ignored.err_msg, exc_info=ignored.exc_value)

    threading.excepthook = on_thread
    sys.unraisablehook = on_unraisable


def _end_threads(service: Service, code: int) -> None:
    """Ends the threads of the pools; ends the process where one of them does not return."""
    service.close()
    service.liveness.wait_for_threads(_MARGIN_S / 2)
    if left := service.liveness.threads_alive():
        _LOG.warning("threads are left behind", extra={"fields": {"threads": left}})
        sys.stdout.flush()
        logging.shutdown()
        os._exit(code)


def _listen(host: str, port: int) -> socket.socket:
    """The socket to serve on, before anything is loaded: that a port is taken is known at once."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidSetting(f"{host}:{port} cannot be listened on: {error.strerror}.") from None


def main(arguments: Sequence[str]) -> int:
    """Runs the server; the exit status."""
    if {"-h", "--help"} & set(arguments):
        flag_parser().print_help()
        return 0
    try:
        settings = read_settings(arguments)
        set_up_logging(settings.log_level)
        return serve(settings)
    except (InvalidSetting, BackendError, BrokenModel) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
