"""On a terminal, the log is text, and the greeting stays in one piece."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.service.program import ROOT, read_until, started
from tests.waiting import wait_until

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}
EXIT_TIMEOUT_S = 60


class Terminal:
    """A pseudo-terminal, and what has been shown on it."""

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        self._shown = b""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                self._shown += os.read(self._master, 65_536)
            except OSError:  # Nobody has the terminal open any more.
                return

    @property
    def lines(self) -> list[str]:
        return self._shown.decode().split("\r\n")


@contextmanager
def on_terminal(
    models: Path, *flags: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], Terminal, str]]:
    """Run the program on a terminal; yields the process, the terminal and the address, once models are loaded."""
    terminal = Terminal()
    command = [sys.executable, "-m", "service", "--models", str(models), "--port", "0", *flags]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=terminal.slave, stderr=terminal.slave, env={**os.environ, **environment}
    ) as process:
        try:
            os.close(terminal.slave)
            wait_until(lambda: any("curl" in line for line in terminal.lines))
            (address,) = re.findall(r"http://[\d.:]+\d", next(line for line in terminal.lines if "docs:" in line))[:1]
            yield process, terminal, address
        finally:
            process.kill()


def test_a_terminal_gets_text_around_an_intact_greeting(tiny_models: Path) -> None:
    with on_terminal(tiny_models, NO_COLOR="1", TERM="xterm") as (process, terminal, address):
        httpx.post(f"{address}/v1/models/credit/predict", json=ROW, headers={"x-request-id": "abc"})
        httpx.get(f"{address}/%1b[2Jx%0aINFO%20forged")
        process.send_signal(signal.SIGTERM)
        assert process.wait(EXIT_TIMEOUT_S) == 0
        wait_until(lambda: any("Finished server process" in line for line in terminal.lines))

    lines = terminal.lines
    begin = next(i for i, line in enumerate(lines) if line.startswith("Sevenfold serves 2 models at"))
    greeting, log = lines[begin : begin + 8], lines[:begin] + lines[begin + 8 :]
    assert [line[:6] for line in greeting] == ["Sevenf", "", "  # Ti", "  curl", "", "  # Ti", "  curl", ""]
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} (INFO|WARNING) +\S", line) for line in log if line)
    assert any("model ready" in line for line in lines[:begin])
    (request,) = [line for line in log if "/credit/predict" in line]
    assert re.search(
        r"POST /v1/models/credit/predict status=200 ms=\S+ model=credit version=1 .*request_id=abc", request
    )
    assert any(r"GET /\x1b[2Jx\nINFO forged status=404" in line for line in log)


def test_with_json_every_line_of_both_streams_is_json(tiny_models: Path) -> None:
    with started(tiny_models, "--log-format", "json") as process:
        serving = json.loads(read_until(process.stderr, '"serving"'))
        process.send_signal(signal.SIGTERM)
        output, log = process.communicate(timeout=EXIT_TIMEOUT_S)

    assert serving["address"].startswith("http://127.0.0.1:")
    assert sorted(serving["models"]) == ["colours", "credit"]
    assert output == ""
    assert [line for line in log.splitlines() if not line.startswith("{")] == []
