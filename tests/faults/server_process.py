"""A server process, for as long as a scenario lasts: its endpoints, its faults, and its use of the machine."""

import http.client
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.server import start_server


@dataclass(frozen=True)
class ServerProcess:
    """A running server.

    Attributes:
        folder: its folder for temporary files.
    """

    process: subprocess.Popen[str]
    port: int
    folder: Path

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and JSON (or text) of a response. Raises OSError if there is none."""
        return self._request("GET", path, None)

    def post(self, path: str) -> tuple[int, Any]:
        """Return status and JSON (or text) of the response to a POST without a body. Raises OSError."""
        return self._request("POST", path, None)

    def fault(self, **command: Any) -> None:
        """Send a command to the faulty backend; see `faulty_server.py`."""
        status, answer = self._request("POST", "/faults", json.dumps(command))
        if status != 200:
            raise RuntimeError(f"The server rejected the command: {status} {answer}.")

    def faults(self) -> dict[str, Any]:
        """Return what the faulty backend has run; see `faulty_server.py`."""
        state: dict[str, Any] = self.get("/faults")[1]
        return state

    def _request(self, method: str, path: str, body: str | None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            content, media_type = response.read(), response.headers.get_content_type()
            return response.status, json.loads(content) if media_type == "application/json" else content.decode()
        except http.client.HTTPException as error:
            raise ConnectionError(f"The server gave no complete response: {error!r}.") from error
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of all series of a metric with these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{key}="{text}"' in series for key, text in labels.items()):
                total += float(value)
        return total

    def resources(self) -> Mapping[str, float]:
        """Return resident memory and its peak in MB, and the numbers of threads and open file descriptors."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(re.findall(r"(VmRSS|VmHWM|Threads):\s+(\d+)", (proc / "status").read_text("utf-8")))
        return {
            "resident_mb": int(status["VmRSS"]) * 1024 / 1e6,
            "peak_mb": int(status["VmHWM"]) * 1024 / 1e6,
            "threads": int(status["Threads"]),
            "descriptors": len(list((proc / "fd").iterdir())),
        }


@contextmanager
def run_server(models: Path, *flags: str, faulty: bool = False) -> Iterator[ServerProcess]:
    """Start a server of these models, with the faulty backend if `faulty`; it is stopped when the context ends.

    Raises RuntimeError, with the end of its log, if it does not start.
    """
    module = "tests.faults.faulty_server" if faulty else "service"
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        # A session of its own: the kernel divides the processor among sessions (sched(7), autogroup). In the same
        # session the threads of a loaded server would leave hardly any of it to the client, which would measure itself.
        environment = os.environ | {"TMPDIR": folder}
        server = start_server(
            models, "--log-level", "warning", *flags, module=module, stderr=log, env=environment, start_new_session=True
        )
        try:
            with server as (process, port):
                yield ServerProcess(process, port, Path(folder))
        except RuntimeError as error:
            error.add_note(f"The end of the server's log: {Path(log.name).read_text('utf-8')[-2000:]}")
            raise
