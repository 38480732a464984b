"""`python -m service`: reads the settings, serves until it is told to stop, and stops without losing anything."""

import asyncio
import json
import logging
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from service.app import Service, create_app
from service.backends.base import BackendError
from service.logs import set_up_logging
from service.repository import Model
from service.settings import InvalidSetting, Settings, flag_parser, read_settings
from tasks.manifest import BrokenModel

_LOG = logging.getLogger(__name__)
_LONGEST_EXAMPLE = 2_000
"""Characters of a body that still make a line to copy."""


class _Server(uvicorn.Server):
    """uvicorn, but readiness falls first, and the address is printed once the models are ready."""

    def __init__(self, config: uvicorn.Config, service: Service, listening: socket.socket) -> None:
        super().__init__(config)
        self._service = service
        self._socket = listening

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            self._greeting = asyncio.create_task(self._greet())

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
    if upload is not None and (files or len(body) > _LONGEST_EXAMPLE):
        return f"curl -F {upload.field}=@{files[0] if files else 'FILE'} {url}{_as_file(model)}"
    if len(body) > _LONGEST_EXAMPLE:
        return f"curl {url.removesuffix('/predict')}    # its 'example' is a body for POST {url}"
    return f"curl -H 'Content-Type: application/json' -d {shlex.quote(body)} {url}"


def _as_file(model: Model) -> str:
    """What makes a picture of the answer, where it can be one: in JSON it would fill the terminal with base64."""
    form = next((form for form in model.task.forms if form.file), None)
    if form is None:
        return ""
    kind = form.media_type.partition("/")[2].partition(";")[0]
    return f" -H 'Accept: {form.media_type}' -o {model.manifest.name}.{kind}"


def _serve(settings: Settings) -> int:
    listening = _listen(settings.host, settings.port)
    service = Service(settings)
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(settings.grace_seconds),
        server_header=False,
    )
    server = _Server(config, service, listening)
    server.run([listening])
    return 0 if server.started else 1


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
        return _serve(settings)
    except (InvalidSetting, BackendError, BrokenModel) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
