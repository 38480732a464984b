"""A server in a process of its own, for as long as a scenario lasts: what it says, and what it takes of the machine."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_GRACE_S = 40.0


@dataclass(frozen=True)
class Host:
    """A server that answers.

    Attributes:
        log: the file that its log goes into.
        folder: where it may keep temporary files.
    """

    process: subprocess.Popen[str]
    port: int
    log: Path
    folder: Path

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON (or text) of the answer. Raises OSError where there is none."""
        return self._ask("GET", path, None)

    def fault(self, **wanted: Any) -> None:
        """Tells the runtime what to do; see `server.py`."""
        status, told = self._ask("POST", "/faults", json.dumps(wanted))
        if status != 200:
            raise RuntimeError(f"The server did not do that: {status} {told}.")

    def seen(self) -> dict[str, Any]:
        """What the runtime has run: see `server.py`."""
        found: dict[str, Any] = self.get("/faults")[1]
        return found

    def _ask(self, method: str, path: str, body: str | None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content, kind = answer.read(), answer.headers.get_content_type()
            return answer.status, json.loads(content) if kind == "application/json" else content.decode()
        except http.client.HTTPException as error:
            raise ConnectionError(f"The server gave no whole answer: {error!r}.") from error
        finally:
            connection.close()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all series of a metric that have these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{key}="{text}"' in series for key, text in labels.items()):
                total += float(value)
        return total

    def status(self) -> Mapping[str, float]:
        """Resident memory and its peak, in MB; threads; open descriptors."""
        proc = Path(f"/proc/{self.process.pid}")
        found = dict(re.findall(r"(VmRSS|VmHWM|Threads):\s+(\d+)", (proc / "status").read_text("utf-8")))
        return {
            "resident_mb": int(found["VmRSS"]) * 1024 / 1e6,
            "peak_mb": int(found["VmHWM"]) * 1024 / 1e6,
            "threads": int(found["Threads"]),
            "descriptors": len(list((proc / "fd").iterdir())),
        }

    def stop(self) -> int:
        """SIGTERM, and the exit status it ends with."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_GRACE_S)

    def log_lines(self) -> list[dict[str, Any]]:
        """Its log so far."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines() if line.startswith("{")]


@contextmanager
def started(models: Path, *flags: str, faulty: bool = False) -> Iterator[Host]:
    """A server of these models, once they are ready; it has ended when the context has.

    Raises RuntimeError, with the end of its log, where it does not start.
    """
    program = "tests.faults.faulty_server" if faulty else "service"
    command = [sys.executable, "-m", program, "--models", str(models), "--port", "0", "--device", "cpu"]
    command += ["--log-level", "warning", *flags]
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        environment = os.environ | {"TMPDIR": folder}
        # A session of its own: the kernel shares the processor among sessions, and the threads of a loaded server would
        # leave the client hardly any (sched(7), autogroup), so that it measured itself.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
        )
        with process:
            try:
                printed = process.stdout.readline() if process.stdout else ""
                address = re.search(r"http://127\.0\.0\.1:(\d+)", printed)
                if address is None:
                    raise RuntimeError(f"The server did not start: {Path(log.name).read_text('utf-8')[-2000:]}")
                yield Host(process, int(address[1]), Path(log.name), Path(folder))
            finally:
                _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until(condition: Callable[[], bool], *, seconds: float, every: float = 0.01) -> float:
    """Seconds until it was so. Raises TimeoutError where it did not come to that in time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"It did not come to that within {seconds:g} s.")
        time.sleep(every)
    return time.monotonic() - began
