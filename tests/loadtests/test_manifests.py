"""The manifests that send load from inside a cluster: Kubernetes' own schemas, and the files that they run."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "helm" / "extras" / "loadtest"
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all((FOLDER / "loadtest.yaml").read_text("utf-8")))
JOBS = [document for document in DOCUMENTS if document["kind"] == "Job"]
_CONFIG_MAP_BYTES = 1_000_000


def of_kind(kind: str) -> dict[str, Any]:
    return next(document for document in DOCUMENTS if document["kind"] == kind)


@pytest.mark.parametrize("version", ["1.29", "1.33", kubernetes_validate.latest_version()])
def test_every_manifest_is_valid_for_kubernetes(version: str) -> None:
    for document in DOCUMENTS:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_pods_satisfy_the_restricted_level(job: dict[str, Any]) -> None:
    pod = job["spec"]["template"]["spec"]

    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_image_has_the_version_of_locust_that_is_tested_here() -> None:
    (pinned,) = re.findall(r"^locust==(\S+)", (ROOT / "requirements" / "load.txt").read_text("utf-8"), re.MULTILINE)
    images = {job["spec"]["template"]["spec"]["containers"][0]["image"] for job in JOBS}

    assert images == {f"locustio/locust:{pinned}"}


def test_the_master_waits_for_as_many_workers_as_there_are_and_its_service_finds_it() -> None:
    master, workers = JOBS
    labels = master["spec"]["template"]["metadata"]["labels"]
    settings = of_kind("ConfigMap")["data"]

    assert workers["spec"]["parallelism"] == workers["spec"]["completions"] == int(settings["LOCUST_EXPECT_WORKERS"])
    assert of_kind("Service")["spec"]["selector"].items() <= labels.items()
    assert of_kind("Service")["metadata"]["name"] in workers["spec"]["template"]["spec"]["containers"][0]["command"]


def test_every_setting_is_one_that_locust_or_the_locustfile_knows() -> None:
    # Asked in another process: importing Locust patches the standard library.
    program = "from locust.argument_parser import get_parser; print(*(a.env_var for a in get_parser()._actions))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    own = re.findall(r'env_var="(\w+)"', (ROOT / "loadtests" / "locustfile.py").read_text("utf-8"))

    assert of_kind("ConfigMap")["data"].keys() <= {*ended.stdout.split(), *own}


def test_the_files_fit_into_config_maps() -> None:
    for folder in ("loadtests", "examples"):
        files = [path for path in (ROOT / folder).iterdir() if path.is_file()]
        assert sum(path.stat().st_size for path in files) < _CONFIG_MAP_BYTES
