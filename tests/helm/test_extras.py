"""The manifests in helm/extras: valid by the schemas of Kubernetes and of the operators, and with commands that run."""

import ast
import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from loadtests.server import free_port
from service.settings import Settings, read_settings
from tests.helm.schemas import CRD_PROJECTS, VERSIONS, NoSchema, problems

ROOT = Path(__file__).parents[2]
EXTRAS = ROOT / "helm" / "extras"
FILES = ["kserve/sevenfold.yaml", "ray/sevenfold.yaml", "training/job.yaml", "training/trainjob.yaml"]
TRAINING_S = 300


def manifests(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXTRAS / file).read_text("utf-8")))


def manifest(file: str, kind: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in manifests(file) if manifest["kind"] == kind]
    return found


def by_group(*, custom: bool) -> Iterator[Any]:
    """Yield the manifests whose kinds are an operator's, or Kubernetes' own."""
    for file in FILES:
        for one in manifests(file):
            if (one["apiVersion"].partition("/")[0] in CRD_PROJECTS) == custom:
                yield pytest.param(one, id=f"{file}:{one['kind']}")


def found_wrong(manifest: dict[str, Any], version: str = VERSIONS[-1]) -> list[str]:
    """Return what is wrong with a manifest; skip the test if the CRDs of its operator were not fetched."""
    try:
        return problems(manifest, version)
    except NoSchema as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("manifest", list(by_group(custom=True)))
def test_a_manifest_of_an_operator_is_valid_by_its_schema(manifest):
    assert found_wrong(manifest) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", list(by_group(custom=False)))
def test_a_manifest_of_kubernetes_is_valid_by_its_schema(manifest, version):
    assert found_wrong(manifest, version) == []


def test_a_wrong_manifest_is_noticed():
    wrong = manifest("ray/sevenfold.yaml", "RayService")
    wrong["spec"]["serveConfig"] = "misspelt"

    (problem,) = found_wrong(wrong)

    assert "serveConfig" in problem


def containers() -> Iterator[Any]:
    pods = {
        "kserve": manifest("kserve/sevenfold.yaml", "ServingRuntime")["spec"],
        "ray": manifest("ray/sevenfold.yaml", "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"][
            "spec"
        ],
        "training": manifest("training/job.yaml", "Job")["spec"]["template"]["spec"],
    }
    for name, pod in pods.items():
        yield pytest.param(pod.get("securityContext", {}), pod["containers"][0], id=name)


@pytest.mark.parametrize(("pod", "container"), list(containers()))
def test_a_container_has_the_rights_that_pod_security_restricted_allows(pod, container):
    security = pod | container["securityContext"]

    assert security["runAsNonRoot"]
    assert security["runAsUser"] == 10001
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_kserve_finds_its_container_with_flags_that_the_server_has():
    container = manifest("kserve/sevenfold.yaml", "ServingRuntime")["spec"]["containers"][0]

    settings = read_settings(container["args"], {entry["name"]: entry["value"] for entry in container["env"]})

    assert container["name"] == "kserve-container"
    assert settings == Settings(host="0.0.0.0", port=8080, models=Path("/mnt/models"), drain_seconds=10)  # noqa: S104


def test_kserve_gives_the_server_the_time_that_it_takes_to_stop():
    container = manifest("kserve/sevenfold.yaml", "ServingRuntime")["spec"]["containers"][0]
    settings = read_settings(container["args"], {})

    grace = manifest("kserve/sevenfold.yaml", "InferenceService")["spec"]["predictor"]["terminationGracePeriodSeconds"]

    assert grace >= settings.drain_seconds + settings.grace_seconds + 5


def test_kserve_is_promised_no_protocol_that_the_server_does_not_speak():
    assert "protocolVersions" not in manifest("kserve/sevenfold.yaml", "ServingRuntime")["spec"]


def test_ray_imports_what_exists_with_settings_that_the_server_has():
    config = yaml.safe_load(manifest("ray/sevenfold.yaml", "RayService")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text("utf-8"))

    read_settings([f"--{key.replace('_', '-')}={text}" for key, text in application["args"].items()], {})

    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert all(isinstance(text, str) for text in application["args"].values())


def test_rays_replicas_fit_into_the_processors_that_their_pods_have():
    spec = manifest("ray/sevenfold.yaml", "RayService")["spec"]
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    (deployment,) = application["deployments"]
    (workers,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]

    promised = int(workers["rayStartParams"]["num-cpus"])

    assert promised == int(limits["cpu"]), "Ray would start more replicas in a pod than it has processors for"
    needed = deployment["autoscaling_config"]["max_replicas"] * deployment["ray_actor_options"]["num_cpus"]
    assert needed <= workers["replicas"] * promised, "without KubeRay's autoscaler, no pod is added for them"
    assert int(application["args"]["threads"]) == deployment["ray_actor_options"]["num_cpus"]


def test_rays_version_is_the_one_that_is_installed_in_the_image():
    version = manifest("ray/sevenfold.yaml", "RayService")["spec"]["rayClusterConfig"]["rayVersion"]

    assert f"\nray=={version} " in (ROOT / "requirements" / "ray.txt").read_text("utf-8")


def write_table(path: Path) -> None:
    generator = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "plan", "left"])
        for _ in range(300):
            age, plan = int(generator.integers(18, 80)), str(generator.choice(["basic", "plus"]))
            writer.writerow([age, plan, "yes" if (age > 50) != (plan == "plus") else "no"])


@pytest.mark.slow
@pytest.mark.timeout(2 * TRAINING_S)
def test_the_command_of_the_training_job_trains_one_model_in_two_processes(tmp_path: Path):
    write_table(tmp_path / "customers.csv")
    container = manifest("training/job.yaml", "Job")["spec"]["template"]["spec"]["containers"][0]
    port = free_port()
    replaced = {
        "--master-addr=sevenfold-training-0.sevenfold-training": "--master-addr=127.0.0.1",
        "--master-port=29500": f"--master-port={port}",
    }
    folders = [word for name in ("runs", "models", "data-dir") for word in (f"--{name}", str(tmp_path / name))]
    arguments = ["tabular", "--data", str(tmp_path / "customers.csv"), "--target", "left", "--name", "customers"]
    arguments += ["--epochs", "2", "--device", "cpu", "--publish", "--anyway", *folders]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    with ExitStack() as stack:
        processes = []
        for rank in range(manifest("training/job.yaml", "Job")["spec"]["completions"]):
            command = [replaced.get(word, word).replace("$(NODE_RANK)", str(rank)) for word in container["command"]]
            command = [sys.executable, "-m", "torch.distributed.run", *command[1:], *arguments]
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            stack.callback(process.kill)
            processes.append(process)
        outputs = [process.communicate(timeout=TRAINING_S)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert (tmp_path / "models" / "customers" / "1" / "manifest.json").exists()
