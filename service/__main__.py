"""`python -m service`: read the settings, serve until told to stop, and finish accepted requests before exiting."""

import asyncio
import gc
import json
import logging
import mimetypes
import os
import shlex
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

if __name__ == "__main__" and sys.argv[1:2] == ["doctor"]:  # What is imported below may be what is missing.
    from service.doctor import run_doctor

    sys.exit(run_doctor(sys.argv[2:]))

import uvicorn
from starlette.types import ASGIApp

from service.app import create_admin_app, create_app
from service.backends.base import BackendError, OpenBackend
from service.backends.cores import available_cores
from service.decoding.fork_server import ForkServer
from service.http.api_keys import new_key_command
from service.http.listening import HttpServer, SecondServer
from service.http.middleware import CloseConnectionMiddleware
from service.http.protocol import make_config
from service.membership import OneOfSeveral
from service.models.model import Model
from service.process.logging import LogLock, LogWriter, make_log_lock, set_up_direct_logging, set_up_logging
from service.process.output import is_terminal, open_standard_descriptors, print_text
from service.process.watchdog import EXIT_BROKEN, Watchdog
from service.server import VERSION, Service
from service.settings import InvalidSetting, Settings, find_service_links, flag_parser, read_settings
from service.supervisor.division import SharedHostMemory, process_count, settings_for_one
from service.supervisor.member import Seat
from service.supervisor.ports import CannotListen, bind_shared, reserve_port
from service.supervisor.supervisor import Supervisor
from service.tracing.start import TracingUnavailable, start_tracing
from tasks.manifest import BrokenModel
from tasks.system_errors import run_command_line

_LOG = logging.getLogger(__name__)
_GIL_SWITCH_INTERVAL_S = 0.0001
_MAX_EXAMPLE_LENGTH = 2_000
"""Longest JSON body, in characters, that is printed as part of a command to copy."""
KEY_OPTION = ' -H "Authorization: Bearer $API_KEY"'
"""How the printed commands send an API key."""
_FATAL_GRACE_S = 1
"""After a fatal failure: how long health checks are still answered, and then how long accepted requests have."""
_ADMIN_GRACE_S = 1
"""How long requests to the admin port may take when all others are finished."""
_SHUTDOWN_MARGIN_S = 4.0
"""How long shutdown may take beyond the grace period before the watchdog kills the process."""


class _Server(HttpServer):
    """A server that fails readiness before it closes, and prints its address once the models are loaded.

    `admin` is the server of the admin port. It starts with this one, and ends last: health and metrics are answered
    until accepted requests are finished.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        listener: socket.socket,
        watchdog: Watchdog,
        show: Callable[[str], None],
        admin: SecondServer | None = None,
        processes: OneOfSeveral | None = None,
    ) -> None:
        """`show` prints the greeting; it may wait for standard output. `processes` are those of the server."""
        super().__init__(config, _tls_context(service))
        self._processes = processes
        self._show = show
        self._service = service
        self._listener = listener
        self._watchdog = watchdog
        self._admin = admin

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._watchdog.watch(loop)
        if self._processes is not None:
            await self._processes.start(lambda: self.handle_exit(signal.SIGTERM, None))
        await super().startup(sockets if self._processes is None or self._processes.accepts else [])
        if self.started:
            if self._processes is None or self._processes.accepts:
                self._begin_admin()
            self._greeting = asyncio.create_task(self._serve_and_greet())  # The event loop keeps only weak references.

            def on_fatal(_: str) -> None:  # May be called in any thread.
                with suppress(RuntimeError):  # The loop is closed: the process is exiting anyway.
                    loop.call_soon_threadsafe(self._exit_after_fatal_failure)

            self._service.liveness.on_fatal(on_fatal)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish accepted requests; the watchdog kills the process if this takes longer than the grace period."""
        grace_s = self.config.timeout_graceful_shutdown or 0
        self._watchdog.kill_after(grace_s + _SHUTDOWN_MARGIN_S, EXIT_BROKEN)
        await super().shutdown(sockets)
        if self._processes is not None:
            await self._processes.say_last_counts()
        if self._admin is not None:
            self._admin.force_exit = self.force_exit
            await self._admin.end()

    def _begin_admin(self) -> None:
        if self._admin is not None:
            self._admin.begin()

    async def _serve_and_greet(self) -> None:
        """Accept connections if others have done so meanwhile; print the greeting, in the first process."""
        if self._processes is not None:
            await self._processes.start_serving()
            if not self._processes.accepts:
                await self.listen(self._listener)
                self._begin_admin()
            self._processes.say_that_it_serves()
            if not await self._processes.is_first_to_greet():
                return
            self._service.replan_memory()
        await self._print_greeting()

    def _exit_after_fatal_failure(self) -> None:
        """Exit soon: for a moment, health checks still report the reason, then accepted requests may finish."""
        self._watchdog.kill_after(2 * _FATAL_GRACE_S + _SHUTDOWN_MARGIN_S, EXIT_BROKEN)
        self.config.timeout_graceful_shutdown = min(self.config.timeout_graceful_shutdown or 0, _FATAL_GRACE_S)
        asyncio.get_running_loop().call_later(_FATAL_GRACE_S, setattr, self, "should_exit", True)

    async def _print_greeting(self) -> None:
        await self._service.loaded.wait()
        address = self._address(self._listener)
        admin_address = "" if self._admin is None else self._address(self._admin.listener)
        repository = self._service.repository
        key = KEY_OPTION if self._service.api_keys is not None else ""
        models, unavailable = list(repository.served_models()), repository.unavailable_models()
        if self._service.settings.log_format == "json":  # Programs read the output, line by line.
            names = [model.manifest.name for model in models]
            fields = {"address": address, "models": names, "unavailable": list(unavailable.values())}
            _LOG.info("serving", extra={"fields": fields})
            return
        text = greeting(address, models, unavailable, key=key, admin_address=admin_address)
        # Whoever reads standard output may not do so: neither the event loop nor an exit waits for that.
        threading.Thread(target=self._show, args=[text], name="greeting", daemon=True).start()

    def _address(self, listener: socket.socket) -> str:
        host, port = listener.getsockname()[:2]
        scheme = "http" if self._service.certificate is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal to stop.

        The first one fails readiness and, after `drain_seconds` for SIGTERM, closes the server. The second one closes
        it immediately, without waiting for accepted requests.
        """
        drain_s = self._service.settings.drain_seconds
        is_second, self._service.draining = self._service.draining, True
        if is_second:
            self.force_exit = True
        if is_second or sig != signal.SIGTERM or not drain_s:
            self.should_exit = True
        else:
            _LOG.info("draining", extra={"fields": {"seconds": drain_s}})
            asyncio.get_running_loop().call_later(drain_s, setattr, self, "should_exit", True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals to stop. Unlike uvicorn, do not raise them again at the end: a clean stop exits with 0."""
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def greeting(
    address: str, models: Sequence[Model], unavailable: Mapping[str, str], *, key: str = "", admin_address: str = ""
) -> str:
    """Return the text that is printed once the models are loaded.

    That is the address, an example command for each model, and why each of the other models is not served. `key` is the
    option of the commands that sends an API key, `admin_address` that of the admin port, if there is one.
    """
    noun = "model" if len(models) == 1 else "models"
    others = f"docs: {address}/docs" + (f", health and metrics: {admin_address}" if admin_address else "")
    lines = [f"Sevenfold serves {len(models)} {noun} at {address}    ({others})", ""]
    for model in models:
        lines += [f"  # {model.manifest.title}", f"  {curl_line(address, model).replace('curl', f'curl{key}', 1)}", ""]
    lines += [f"  # {reason}" for reason in unavailable.values()]
    return "\n".join(lines)


def curl_line(address: str, model: Model) -> str:
    """Return a curl command that requests a prediction; it works in the folder that the server was started in."""
    url = f"{address}/v1/models/{model.manifest.name}/predict"
    upload, body = model.task.upload, json.dumps(model.example)
    files = [] if upload is None else _example_files(f"{model.manifest.name}-*")
    if upload is not None and not files and model.task.decodes_files and len(body) > _MAX_EXAMPLE_LENGTH:
        # Those of other models: an unsuitable image gets a wrong answer, but the command works.
        files = [path for path in _example_files("*") if mimetypes.guess_type(path)[0] in upload.media_types]
        files = files or [Path("FILE")]
    if upload is not None and files:
        return f"curl -F {upload.field}=@{files[0]} {url}{_output_options(model)}"
    if len(body) > _MAX_EXAMPLE_LENGTH:
        return f"curl {url.removesuffix('/predict')}    # 'example' in the response is a body for POST {url}"
    return f"curl -H 'Content-Type: application/json' -d {shlex.quote(body)} {url}"


def _example_files(pattern: str) -> list[Path]:
    return [path for path in sorted(Path("examples").glob(pattern)) if path.suffix != ".json"]


def _output_options(model: Model) -> str:
    """Return the curl options that save the answer as an image, if it can be one: as base64 it floods the terminal."""
    representation = next((candidate for candidate in model.task.representations if candidate.file), None)
    if representation is None:
        return ""
    extension = representation.media_type.partition("/")[2].partition(";")[0]
    return f" -H 'Accept: {representation.media_type}' -o {model.manifest.name}.{extension}"


def serve_settings(settings: Settings, open_backend: OpenBackend | None = None) -> int:
    """Serve in as many processes as the settings ask for, until told to stop, and return the exit status.

    `open_backend` is the runtime; by default ONNX Runtime. Raises what `serve` raises.
    """
    chosen = process_count(settings)
    if chosen.count == 1:
        if chosen.problem is not None:
            set_up_logging(settings.log_level, settings.log_format)
            _LOG.warning("fewer processes than asked for: %s", chosen.problem)
        return serve(settings, open_backend)
    set_up_direct_logging(settings.log_level, settings.log_format)
    if chosen.problem is not None:
        _LOG.warning("fewer processes than asked for: %s", chosen.problem)
    # The supervisor keeps the ports, without listening, so that processes can be replaced.
    with ExitStack() as ports:
        port = ports.enter_context(reserve_port(settings.host, settings.port))
        if settings.admin_port:
            ports.enter_context(reserve_port(settings.host, settings.admin_port))
        own = settings_for_one(replace(settings, port=port.number), chosen.count, available_cores())
        lock, fork_server, decoder_control = make_log_lock(), ForkServer(), None
        with suppress(OSError):  # Each process starts one of its own, then, or says why it cannot.
            decoder_control = fork_server.open()

        def run_process(seat: Seat) -> int:
            try:
                shared = ForkServer(shared=decoder_control)
                return serve(own, open_backend, seat=seat, log_lock=lock, fork_server=shared)
            except _START_ERRORS as error:
                print_text(sys.stderr, f"error: {error}")
                return 2

        gc.collect()
        gc.freeze()  # A collection would write to objects that all processes share, and each would get a copy of them.
        supervisor = Supervisor(chosen.count, run_process, stop_s=settings.drain_seconds + settings.grace_seconds)
        try:
            return supervisor.run()
        finally:
            fork_server.close()


def serve(
    settings: Settings,
    open_backend: OpenBackend | None = None,
    wrap: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    *,
    seat: Seat | None = None,
    log_lock: LogLock | None = None,
    fork_server: ForkServer | None = None,
) -> int:
    """Serve in this process until told to stop, and return the exit status.

    Does not return if a thread never finishes: Python would wait for it at exit, so the process is ended here.

    Args:
        settings: the settings.
        open_backend: the runtime; by default ONNX Runtime.
        wrap: adds middleware around the application.
        seat: if this is one of several processes, which one; the settings are its part then (`settings_for_one`).
        log_lock: held while log lines are written, if other processes write to the same place.
        fork_server: starts the processes that decode; by default one of its own.

    Returns:
        0 after a clean stop, 1 if the server could not start, 70 after a fatal failure.

    Raises InvalidSetting, BackendError, BrokenModel and TracingUnavailable if the service cannot be created.
    """
    # Worker threads that decode in Python hold the GIL for this long at a time, and the event loop waits as long for
    # each send and receive: with Python's default of 5 ms, rejecting a request took 80 ms under overload.
    sys.setswitchinterval(_GIL_SWITCH_INTERVAL_S)
    log = set_up_logging(settings.log_level, settings.log_format, log_lock)
    _log_uncaught_errors()
    if links := find_service_links():
        _LOG.warning(
            "ignored environment variables that describe a Kubernetes Service called like this program; "
            "`enableServiceLinks: false` in the pod's spec keeps them away",
            extra={"fields": {"variables": links}},
        )
    tracer = start_tracing(VERSION)
    listener = _listen(settings.host, settings.port, is_shared=seat is not None)
    admin_listener = _listen_for_admin(settings, is_shared=seat is not None)
    count = 1 if seat is None else seat.processes
    service = Service(settings, open_backend, tracer, SharedHostMemory(processes=count), count, fork_server)
    processes = None if seat is None else OneOfSeveral(service, seat)
    service.metrics.count(
        "sevenfold_dropped_log_lines", "Log lines that could not be written, or not soon enough.", lambda: log.dropped
    )
    config = _server_config(wrap(create_app(service, processes)), service, grace_s=round(settings.grace_seconds))
    watchdog = Watchdog(settings.hang_seconds)
    admin = _make_admin_server(service, admin_listener, processes)
    server = _Server(config, service, listener, watchdog, partial(_print_greeting, log), admin, processes)
    watchdog.start()
    server.run([listener])
    if not server.started:
        return 1
    code = EXIT_BROKEN if service.liveness.is_fatal else 0
    _stop_threads(service, code)
    watchdog.stop()
    return code


def _server_config(app: ASGIApp, service: Service, *, grace_s: int, **options: Any) -> uvicorn.Config:
    return make_config(
        CloseConnectionMiddleware(app, lambda: service.draining or service.liveness.is_fatal),
        head_timeout_s=service.settings.timeout_ms / 1000,
        timeout_graceful_shutdown=grace_s,
        **options,
    )


def _make_admin_server(
    service: Service, listener: socket.socket | None, processes: OneOfSeveral | None
) -> SecondServer | None:
    if listener is None:
        return None
    config = _server_config(create_admin_app(service, processes), service, grace_s=_ADMIN_GRACE_S, lifespan="off")
    return SecondServer(config, listener, _tls_context(service))


def _tls_context(service: Service) -> ssl.SSLContext | None:
    return None if service.certificate is None else service.certificate.context


def _print_greeting(log: LogWriter, text: str) -> None:
    """Print the greeting on standard output; if that is a terminal that shows the log too, not amid its lines."""
    with log.paused() if is_terminal(sys.stdout) and is_terminal(sys.stderr) else nullcontext():
        print_text(sys.stdout, text)


def _log_uncaught_errors() -> None:
    """Log errors that end a thread and errors that Python cannot raise, in the same format as all other messages."""

    def on_thread_error(error: threading.ExceptHookArgs) -> None:
        _LOG.critical("uncaught error in a thread", exc_info=error.exc_value)

    def on_unraisable(error: Any) -> None:
        _LOG.error("unraisable error: %s", error.err_msg, exc_info=error.exc_value)

    threading.excepthook = on_thread_error
    sys.unraisablehook = on_unraisable


def _stop_threads(service: Service, code: int) -> None:
    """Stop the threads of the pools; exit the process if one of them does not finish."""
    ends_at = time.monotonic() + _SHUTDOWN_MARGIN_S / 2  # Of both, so that the watchdog is not what ends the process.
    service.close()
    if service.tracer is not None:
        service.tracer.close()
    service.liveness.wait_for_threads(max(0.0, ends_at - time.monotonic()))
    if alive := service.liveness.live_threads():
        _LOG.warning("exiting with threads still running", extra={"fields": {"threads": alive}})
        logging.shutdown()
        os._exit(code)


def _listen_for_admin(settings: Settings, *, is_shared: bool) -> socket.socket | None:
    if not settings.admin_port:
        return None
    return _listen(settings.host, settings.admin_port, is_shared=is_shared)


def _listen(host: str, port: int, *, is_shared: bool) -> socket.socket:
    """Open the socket to serve on. This comes before loading, so that a port in use is reported immediately.

    A socket that processes share is bound only: the kernel gives it connections from when the server listens.
    """
    if is_shared:
        return bind_shared(host, port)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise CannotListen(host, port, error) from None


def _import(arguments: Sequence[str]) -> int:
    try:
        import onnx  # noqa: F401 -- The server works without it.
    except ModuleNotFoundError:
        print("error: importing a graph needs the package onnx; install it with: pip install onnx", file=sys.stderr)
        return 2
    from service.importing.command import import_model

    return run_command_line(import_model, arguments)


def _fetch(arguments: Sequence[str]) -> int:
    from service.fetching.command import fetch_models

    return run_command_line(fetch_models, arguments)


def _smoke(arguments: Sequence[str]) -> int:
    from service.smoke import check_models

    return run_command_line(check_models, arguments)


_START_ERRORS = (InvalidSetting, BackendError, BrokenModel, TracingUnavailable)
"""What keeps the server from starting, and is told without a traceback."""
_COMMANDS = {"fetch": _fetch, "import": _import, "new-key": new_key_command, "smoke": _smoke}


def main(arguments: Sequence[str]) -> int:
    """Run the server, or a command such as `import`, and return the exit status."""
    open_standard_descriptors()
    if arguments and arguments[0] in _COMMANDS:
        return _COMMANDS[arguments[0]](arguments[1:])
    if {"-h", "--help"} & set(arguments):
        print_text(sys.stdout, flag_parser().format_help())
        return 0
    try:
        return serve_settings(read_settings(arguments))
    except _START_ERRORS as error:
        print_text(sys.stderr, f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
