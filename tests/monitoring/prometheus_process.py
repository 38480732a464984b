"""A real Prometheus in a process of its own, that scrapes servers of this machine and evaluates the rules."""

import json
import math
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.monitoring.queries import RULES
from tests.waiting import wait_until

JOB = "sevenfold"
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Series:
    """A series of an answer: its labels, and its values with their times (one for an instant query)."""

    labels: Mapping[str, str]
    times: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    address: str

    def query(self, expression: str, *, at: float | None = None) -> list[Series]:
        """Evaluate an expression now, or at another time. Raises RuntimeError if Prometheus does not accept it."""
        data = self._get("query", query=expression, **({} if at is None else {"time": at}))
        if data["resultType"] == "scalar":
            return [Series({}, [data["result"][0]], [float(data["result"][1])])]
        return [Series(s["metric"], [s["value"][0]], [float(s["value"][1])]) for s in data["result"]]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """Evaluate an expression at each step from `start` to `end`. Raises RuntimeError."""
        data = self._get("query_range", query=expression, start=start, end=end, step=step)
        return [
            Series(s["metric"], [t for t, _ in s["values"]], [float(v) for _, v in s["values"]]) for s in data["result"]
        ]

    def value(self, expression: str) -> float:
        """Return the value of an expression that has one series, or NaN if it has none."""
        series = self.query(expression)
        return series[0].values[0] if series else math.nan

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {a["labels"]["alertname"] for a in self._get("alerts")["alerts"] if a["state"] == "firing"}

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules with their health, as Prometheus reports them."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, endpoint: str, **parameters: Any) -> Any:
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(  # noqa: S310, it is http and on this machine
                f"{self.address}/api/v1/{endpoint}?{query}", timeout=_TIMEOUT_S
            ) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"Prometheus: {json.load(error)['error']}") from error
        return answer["data"]


@contextmanager
def run_prometheus(program: Path, folder: Path, ports: Sequence[int], *, interval_s: int = 1) -> Iterator[Prometheus]:
    """Start Prometheus on a free port; it scrapes the servers at these ports, and evaluates the rules, every interval.

    Its data and its log are written to `folder`. Raises RuntimeError if it does not start.
    """
    rules = yaml.safe_load(RULES.read_text("utf-8"))
    for group in rules["groups"]:
        group.pop("interval", None)
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    config = {
        "global": {"scrape_interval": f"{interval_s}s", "evaluation_interval": f"{interval_s}s"},
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        str(program),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    log = folder / "prometheus.log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield Prometheus(_address(process, log))
        finally:
            process.terminate()
            try:
                process.wait(_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(process: subprocess.Popen[Any], log: Path) -> str:
    """Wait until Prometheus is ready, and return its address."""
    listening = re.compile(r'msg="Listening on" address=(\S+)')

    def has_started() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"Prometheus ended with status {process.returncode}: {log.read_text()[-1000:]}")
        return "Server is ready" in log.read_text() and listening.search(log.read_text()) is not None

    wait_until(has_started, timeout_s=_TIMEOUT_S, interval_s=0.05)
    match = listening.search(log.read_text())
    assert match
    return f"http://{match[1]}"


def now() -> float:
    """Return the time as Prometheus counts it."""
    return time.time()
