"""Each helm command of the documents is one that the chart accepts: rendered instead of installed."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.helm.chart import CHART, KUBERNETES, pod_templates, run_helm
from tests.helm.schemas import problems

ROOT = CHART.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "kubernetes.md", CHART / "README.md"]
BLOCKS = [block for path in DOCUMENTS for block in re.findall(r"```sh\n(.*?)```", path.read_text("utf-8"), re.DOTALL)]
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"helm (install|upgrade) ", line)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_values_of_a_documented_command_are_accepted(command: str) -> None:
    arguments = shlex.split(command, comments=True)[2:]
    options = [
        text for text in arguments if text not in ("--install", "--create-namespace", "--reset-then-reuse-values")
    ]

    printed = run_helm("helm4", "template", *options, "--kube-version", KUBERNETES, folder=ROOT)

    assert "kind: Deployment" in printed


def test_the_pod_that_fills_a_claim_is_valid_and_restricted() -> None:
    (text,) = (match for block in BLOCKS for match in re.findall(r"<<'YAML'\n(.*?)YAML", block, re.DOTALL))
    manifest = yaml.safe_load(text)

    assert problems(manifest, KUBERNETES) == []
    (pod,) = pod_templates([manifest])
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


@pytest.mark.parametrize("path", sorted((CHART / "ci").glob("*.yaml")), ids=lambda path: path.name)
def test_a_values_file_says_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert json.dumps(yaml.safe_load(path.read_text()))
