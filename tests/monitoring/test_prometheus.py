"""A real Prometheus scrapes two servers: the dashboard has data, rules work, nothing fires while all is well."""

import math
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from loadtests.clients import Reply, open_loop, send_sequentially
from loadtests.server import start_server
from tests.external_tools import require_tool
from tests.monitoring.prometheus_process import Prometheus, run_prometheus
from tests.monitoring.queries import (
    ROOT,
    Query,
    panels_of,
    queries_of,
    read_alerts,
    read_dashboard,
    substitute,
)
from tests.monitoring.traffic import MODELS, Requests, copy_models
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

WITHOUT_DATA = {
    "Access failed reload of {{file}}": "needs --api-keys-file or --tls-cert",
}
"""Queries that have no data on this machine: panel (and legend, where another query of the panel has data)."""
OF_THE_MACHINE = {"SevenfoldEventLoopLag", "SevenfoldLatencyBudgetBurnFast", "SevenfoldLatencyBudgetBurnSlow"}
"""Alerts whose condition may hold for a moment where other programs use the processor."""
MAX_QUEUE = 8
PATIENCE_S, SHORT_S = 180.0, 30.0


@dataclass(frozen=True)
class Run:
    """What was seen of two servers: one with a model of each task, and one with `adult` only.

    Attributes:
        answered: requests to both servers that were answered while all was well.
        counted: what Prometheus counted, summed over both.
        firing, holding: alerts that fired then; alerts whose condition held then.
        servers: how many servers served each model then, according to the dashboard.
        exposition: the metrics of the first server at the end.
    """

    prometheus: Prometheus
    answered: int
    counted: float
    firing: set[str]
    holding: set[str]
    servers: dict[str, float]
    exposition: str


def query_of(panel: str) -> str:
    """Return the first query of a panel, over all that Prometheus knows."""
    (found, *_) = [query for query in queries_of(panels_of(read_dashboard())) if query.panel == panel]
    return as_grafana(found)


def as_grafana(query: Query) -> str:
    # The interval is long enough to hold all that happened.
    return substitute(query.expression, interval="5m")


def holding_alerts(prometheus: Prometheus) -> set[str]:
    return {alert.alert for alert in read_alerts() if prometheus.query(alert.expression)}


def queries_without_data(prometheus: Prometheus) -> set[str]:
    queries = list(queries_of(panels_of(read_dashboard())))
    lacking = [
        q for q in queries if all(map(math.isnan, [v for s in prometheus.query(as_grafana(q)) for v in s.values]))
    ]
    panels = {q.panel for q in queries if q not in lacking}
    return {f"{q.panel} {q.legend}" if q.panel in panels else q.panel for q in lacking}


def count_ok(replies: list[Reply]) -> int:
    return sum(reply.status == 200 for reply in replies)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    program, folder = require_tool("prometheus"), tmp_path_factory.mktemp("prometheus")
    models, adult = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("adult")
    requests = Requests(copy_models(models))
    (adult / "adult").symlink_to(ROOT / "models" / "adult")
    flags = ["--rescan-seconds", "0.5", "--shadow", "adult=1", "--shadow-requests", "10", "--max-queue", str(MAX_QUEUE)]
    options = {"cwd": ROOT, "stderr": subprocess.DEVNULL}
    with (
        start_server(models, *flags, **options) as (_, port),
        start_server(adult, **options) as (_, other_port),
        run_prometheus(program, folder, [port, other_port]) as prometheus,
    ):
        # Rates need the counters to rise between two scrapes: the series exist before the requests that count.
        rounds = [requests.valid(name, seed).request for seed in range(3) for name in MODELS]
        answered = count_ok(send_sequentially(port, rounds))
        answered += count_ok(send_sequentially(other_port, [requests.valid("adult", 0).request] * 5))
        counted = 'sum(sevenfold_requests_total{model!="none", status="200"})'
        wait_until(lambda: prometheus.value(counted) == answered, timeout_s=PATIENCE_S, interval_s=0.2)
        answered += count_ok(open_loop(port, requests.mixed(per_second=8, seconds=5)))
        wait_until(lambda: prometheus.value(counted) == answered, timeout_s=PATIENCE_S, interval_s=0.2)
        total, firing, holding = prometheus.value(counted), prometheus.firing(), holding_alerts(prometheus)
        of_panel = prometheus.query(query_of("Servers that serve a version"))
        servers = {series.labels["model"]: series.values[0] for series in of_panel}

        cause_trouble(port, requests, models)
        with suppress(TimeoutError):  # A test says which are missing.
            wait_until(lambda: queries_without_data(prometheus) <= set(WITHOUT_DATA), timeout_s=SHORT_S, interval_s=0.5)
        exposition = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
        yield Run(prometheus, answered, total, firing, holding, servers, exposition)


def cause_trouble(port: int, requests: Requests, models: Path) -> None:
    """Cause errors, rejections, hang-ups, a version that is promoted after its evaluation, and one that is broken."""
    requests.publish_same_answers(models, "adult")
    requests.publish_broken(models, "faces")
    scheduled = requests.mixed(per_second=8, seconds=8) + requests.errors()
    scheduled += requests.burst("camvid", 5 * MAX_QUEUE, at_s=5.0)
    scheduled += requests.burst("camvid", 2 * MAX_QUEUE, at_s=7.0, timeout_ms=30)
    scheduled.append(requests.costly_file(at_s=2.0))
    open_loop(port, sorted(scheduled, key=lambda request: request.at_s))
    adult = requests.valid("adult", 0).request

    def is_promoted() -> bool:
        send_sequentially(port, [adult])
        return 'decision="promoted"' in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text

    # Slower than scrapes: the counters of the evaluation rise between two of them.
    wait_until(is_promoted, timeout_s=PATIENCE_S, interval_s=0.5)


def test_counters_are_summed_over_pods_and_equal_what_clients_counted(run: Run) -> None:
    assert run.counted == run.answered
    assert run.servers == {name: 2 if name == "adult" else 1 for name in MODELS}
    assert run.prometheus.value(query_of("Servers")) == 2


def test_no_alert_fires_while_all_is_well(run: Run) -> None:
    assert run.firing == set()
    assert run.holding <= OF_THE_MACHINE


def test_every_rule_evaluates_without_an_error(run: Run) -> None:
    unhealthy = {rule["name"]: rule.get("lastError") for rule in run.prometheus.rules() if rule["health"] != "ok"}

    assert unhealthy == {}


def test_every_query_of_the_dashboard_has_data_except_those_listed(run: Run) -> None:
    assert queries_without_data(run.prometheus) == set(WITHOUT_DATA)


def test_the_conditions_of_alerts_hold_after_what_they_warn_of(run: Run) -> None:
    expected = {"SevenfoldRequestsRejected", "SevenfoldModelLoadFailed"}

    wait_until(lambda: expected <= holding_alerts(run.prometheus), timeout_s=PATIENCE_S, interval_s=0.5)


def test_promtool_finds_nothing_wrong_with_the_metrics_of_a_server_in_use(run: Run) -> None:
    command = [require_tool("promtool"), "check", "metrics"]

    ended = subprocess.run(command, input=run.exposition, capture_output=True, text=True, timeout=60, check=False)

    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
