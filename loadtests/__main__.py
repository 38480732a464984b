"""`python -m loadtests`: run Locust headless, against a server of its own unless --host names one.

What follows goes to Locust (`-u 32 -t 5m --shape spike`). The report is written to loadtests/reports/.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from loadtests.server import start_server

_ROOT = Path(__file__).resolve().parents[1]
_LOCUSTFILE = _ROOT / "loadtests" / "locustfile.py"
_DEFAULTS = {"-u": "8", "-r": "8", "-t": "60s"}
_LONG_NAMES = {"-u": "--users", "-r": "--spawn-rate", "-t": "--run-time"}


def main(arguments: Sequence[str]) -> int:
    """Run Locust; return its exit status: 0 if the objectives were kept, 1 if not, 2 if it could not run."""
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__, allow_abbrev=False)
    parser.add_argument("--host", "-H", default="", help="base URL of the server; default: start one on this machine")
    parser.add_argument("--models", type=Path, default=Path("models"), help="models of a server that is started")
    parser.add_argument("--reports", type=Path, default=Path("loadtests/reports"), help="folder for CSV and HTML")
    options, others = parser.parse_known_args(arguments)
    folder = options.reports / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    with _server(options.host, options.models) as url:
        command = [
            sys.executable,
            "-m",
            "locust",
            "-f",
            str(_LOCUSTFILE),
            "--host",
            url,
            "--headless",
            "--only-summary",
        ]
        command += ["--csv", str(folder / "load"), "--html", str(folder / "load.html")]
        status = subprocess.run([*command, *_with_defaults(others)], check=False).returncode
    print(f"Report: {folder / 'load.html'}; figures: {folder / 'load_stats.csv'}")
    return status


def _with_defaults(arguments: Sequence[str]) -> list[str]:
    """Add files, users, rate and time where they are not given; a shape has users and a time of its own."""
    given = list(arguments)
    if not any(argument.startswith("--files") for argument in given):
        given += ["--files", str(_ROOT / "examples")]
    if any(argument.startswith("--shape") for argument in given):
        return given
    for short, value in _DEFAULTS.items():
        if not any(argument.startswith((short, _LONG_NAMES[short])) for argument in given):
            given += [short, value]
    return given


@contextmanager
def _server(url: str, models: Path) -> Iterator[str]:
    if url:
        yield url
        return
    # A session of its own, so that the kernel divides the processor between server and clients (sched(7), autogroup).
    with start_server(models, "--log-level", "warning", start_new_session=True) as (_, port):
        yield f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
