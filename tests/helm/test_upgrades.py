"""What an upgrade changes: pods restart if what they run changes and only then, and selectors never change."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.chart import CHART, VALUES_FILES, Manifest, only, pod_templates, render

RESTARTS = {
    "a setting": {"server": {"maxBatch": 16}},
    "a port": {"containerPorts": {"http": 9000}},
    "time to drain": {"lifecycle": {"drainSeconds": 7}},
    "a CORS origin": {"corsOrigins": ["https://app.example.com"]},
}
KEEPS = {
    "labels": {"commonAnnotations": {"a": "b"}},
    "replicas": {"replicaCount": 4},
    "the Service": {"service": {"type": "LoadBalancer", "ports": {"http": 80}}},
    "monitoring": {"monitoring": {"serviceMonitor": {"enabled": True}}},
    "the test": {"tests": {"enabled": False}},
}


def deployment(values: Any = None, *files: Path, **options: Any) -> Manifest:
    return only(render(values, *files, **options), "Deployment")


def checksum(manifest: Manifest) -> str:
    return manifest["spec"]["template"]["metadata"]["annotations"]["checksum/config"]


@pytest.mark.parametrize("values", RESTARTS.values(), ids=RESTARTS)
def test_a_change_of_the_settings_changes_the_checksum(values: dict[str, Any]) -> None:
    assert checksum(deployment(values)) != checksum(deployment())


@pytest.mark.parametrize("values", KEEPS.values(), ids=KEEPS)
def test_another_change_keeps_the_pods(values: dict[str, Any]) -> None:
    assert deployment(values)["spec"]["template"] == deployment()["spec"]["template"]


def test_a_new_version_of_the_chart_alone_keeps_the_pods(tmp_path: Path) -> None:
    newer = shutil.copytree(CHART, tmp_path / "helm")
    about = yaml.safe_load((newer / "Chart.yaml").read_text())
    (newer / "Chart.yaml").write_text(json.dumps(about | {"version": "9.9.9"}))

    upgraded = deployment(chart=newer)

    assert upgraded["metadata"]["labels"]["helm.sh/chart"] == "sevenfold-9.9.9"
    assert upgraded["spec"]["template"] == deployment()["spec"]["template"]


def test_no_value_changes_the_selector_of_the_deployment() -> None:
    selectors = [deployment(None, file)["spec"]["selector"] for file in VALUES_FILES]

    assert all(selector == selectors[0] for selector in selectors)


def test_versions_are_not_in_the_labels_of_pods() -> None:
    for pod in pod_templates([deployment()]):
        assert "app.kubernetes.io/version" not in pod["metadata"]["labels"]
        assert "helm.sh/chart" not in pod["metadata"]["labels"]


def test_the_chart_has_the_version_of_the_program() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (CHART.parent / "pyproject.toml").read_text()

    assert f'version = "{about["appVersion"]}"' in project
