"""The alerts: valid, each with a unit test that makes it fire, a runbook paragraph, and series that exist."""

import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtests.server import start_server
from tests.external_tools import require_tool
from tests.monitoring.queries import (
    ROOT,
    RULE_TESTS,
    RULES,
    Rule,
    exposed_names,
    metric_names,
    panels_of,
    queries_of,
    read_alerts,
    read_dashboard,
    read_rules,
)

ALERTS = read_alerts()
RUNBOOK = ROOT / "docs" / "monitoring.md"
BY_NAME = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.alert)
NOT_ALWAYS_EXPOSED = {
    "sevenfold_device_memory_used_bytes": "needs an NVIDIA GPU",
    "sevenfold_device_memory_total_bytes": "needs an NVIDIA GPU",
    "sevenfold_tls_certificate_expiry_timestamp_seconds": "needs --tls-cert",
    "sevenfold_api_keys": "needs --api-keys-file",
    "sevenfold_reload_failures_total": "needs --api-keys-file or --tls-cert",
}
"""Metrics that a server without a GPU and without these settings need not expose."""
OF_PROMETHEUS = {"up"}


def unit_tests() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text("utf-8")) for path in sorted(RULE_TESTS.glob("*.yaml"))]
    return [test for file in files for group in file["tests"] for test in group.get("alert_rule_test", [])]


def promtool(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [require_tool("promtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **options)


@pytest.fixture(scope="module")
def exposition(tmp_path_factory: pytest.TempPathFactory) -> str:
    models = tmp_path_factory.mktemp("models")
    (models / "adult").symlink_to(ROOT / "models" / "adult")
    with start_server(models, cwd=ROOT, stderr=subprocess.DEVNULL) as (_, port):
        return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text


def test_promtool_accepts_the_rules() -> None:
    ended = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)

    assert ended.returncode == 0, ended.stderr


def test_the_unit_tests_of_the_rules_pass() -> None:
    ended = promtool("test", "rules", *sorted(RULE_TESTS.glob("*.yaml")))

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_there_are_at_least_twelve_alerts_with_names_of_their_own() -> None:
    names = [alert.alert for alert in ALERTS]

    assert len(names) >= 12
    assert len(set(names)) == len(names)


@BY_NAME
def test_a_unit_test_makes_the_alert_fire_and_another_one_does_not(alert: Rule) -> None:
    fires = {bool(test["exp_alerts"]) for test in unit_tests() if test["alertname"] == alert.alert}

    assert fires == {True, False}


def test_every_unit_test_is_of_an_alert_that_exists() -> None:
    # promtool accepts a test of an alert that does not exist if it expects that nothing fires.
    assert {test["alertname"] for test in unit_tests()} == {alert.alert for alert in ALERTS}


@BY_NAME
def test_an_alert_says_how_bad_it_is_what_happened_and_where_its_runbook_is(alert: Rule) -> None:
    annotations = alert.fields["annotations"]

    assert alert.fields["labels"]["severity"] in ("critical", "warning", "info")
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert annotations["runbook_url"] == f"docs/monitoring.md#{alert.alert.lower()}"
    assert re.search(r"\{\{.*\}\}", annotations["description"]) or alert.alert == "SevenfoldAbsent"


@BY_NAME
def test_the_runbook_has_a_paragraph_on_the_alert_with_what_it_means_its_cause_and_its_cure(alert: Rule) -> None:
    (paragraph,) = re.findall(
        rf"^### {alert.alert}\n(.*?)(?=^#|\Z)", RUNBOOK.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )

    assert f"({alert.fields['labels']['severity']})" in paragraph
    assert all(word in paragraph for word in ("**Means:**", "**Cause:**", "**Do:**"))


@BY_NAME
def test_an_alert_on_kubernetes_objects_says_that_it_needs_kube_state_metrics(alert: Rule) -> None:
    needs = any(name.startswith("kube_") for name in metric_names(alert.expression))

    assert needs == ("kube-state-metrics" in alert.fields["annotations"]["description"])


def test_rules_and_dashboard_read_only_series_that_a_running_server_exposes(exposition: str) -> None:
    rules = read_rules()
    expressions = [rule.expression for rule in rules]
    expressions += [query.expression for query in queries_of(panels_of(read_dashboard()))]

    names = set().union(*map(metric_names, expressions))

    recorded = {rule.record for rule in rules if rule.record}
    kubernetes = {name for name in names if name.startswith("kube_")}
    assert names - exposed_names(exposition) - recorded - kubernetes - set(NOT_ALWAYS_EXPOSED) == OF_PROMETHEUS


def test_promtool_finds_nothing_wrong_with_the_metrics_of_a_running_server(exposition: str) -> None:
    ended = promtool("check", "metrics", input=exposition)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout + ended.stderr == ""
