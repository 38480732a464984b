"""Every file of values in helm/ci: linted and rendered by Helm 3 and 4, and valid for every version of Kubernetes."""

from itertools import chain
from pathlib import Path

import pytest

from tests.helm.chart import HELMS, VALUES_FILES, Manifest, containers, of_kind, pod_templates, render, run_helm
from tests.helm.schemas import CRD_PROJECTS, VERSIONS, NoSchema, problems

FIRST_VERSION = {"image-volume": "1.31"}
"""Files that need a newer version of Kubernetes than the chart does."""

each_file = pytest.mark.parametrize("file", VALUES_FILES, ids=lambda file: file.name.removesuffix("-values.yaml"))
each_helm = pytest.mark.parametrize("helm", HELMS)


def versions_for(file: Path) -> list[str]:
    first = FIRST_VERSION.get(file.name.removesuffix("-values.yaml"), VERSIONS[0])
    return list(VERSIONS[VERSIONS.index(first) :])


def is_custom(manifest: Manifest) -> bool:
    return manifest["apiVersion"].partition("/")[0] in CRD_PROJECTS


@each_helm
@each_file
def test_values_pass_strict_lint(file: Path, helm: str) -> None:
    printed = run_helm(helm, "lint", "--strict", file.parents[1], "--values", file, "--kube-version", "1.33")

    assert "0 chart(s) failed" in printed
    assert "[WARNING]" not in printed


@each_file
def test_helm_3_and_4_render_the_same(file: Path) -> None:
    by_helm_3, by_helm_4 = (render(None, file, helm=helm) for helm in HELMS)

    assert by_helm_3 == by_helm_4


@each_file
def test_manifests_are_valid_in_every_version_of_kubernetes(file: Path) -> None:
    for version in versions_for(file):
        manifests = [manifest for manifest in render(None, file, kubernetes=version) if not is_custom(manifest)]

        assert {version: list(chain.from_iterable(problems(manifest, version) for manifest in manifests))} == {
            version: []
        }


@each_file
def test_custom_resources_are_valid_and_have_no_unknown_fields(file: Path) -> None:
    custom = [manifest for manifest in render(None, file) if is_custom(manifest)]

    try:
        found = list(chain.from_iterable(problems(manifest, VERSIONS[-1]) for manifest in custom))
    except NoSchema as missing:
        pytest.skip(str(missing))
    assert found == []


@each_file
def test_two_releases_in_a_namespace_share_no_object_and_no_pod(file: Path) -> None:
    first, second = (render(None, file, release=release) for release in ("one", "two"))
    names = [{(m["kind"], m["metadata"]["name"]) for m in manifests} for manifests in (first, second)]

    assert not names[0] & names[1]
    for selecting, others in ((first, second), (second, first)):
        for selector in selectors(selecting):
            for pod in pod_templates(others):
                assert not selector.items() <= pod["metadata"]["labels"].items()


def selectors(manifests: list[Manifest]) -> list[dict[str, str]]:
    """Return whatever selects pods for a controller, a Service, a budget, a policy or a monitor."""
    found = []
    for manifest in manifests:
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector"))
        if selector is not None:
            found.append(selector.get("matchLabels", selector))
    return found


@each_file
def test_selectors_find_the_server_and_never_the_test(file: Path) -> None:
    manifests = render(None, file)
    (server,) = pod_templates(of_kind(manifests, "Deployment"))
    tests = of_kind(manifests, "Pod")

    for selector in selectors(manifests):
        assert selector.items() <= server["metadata"]["labels"].items()
        assert not any(selector.items() <= test["metadata"]["labels"].items() for test in tests)


@each_file
def test_every_object_is_in_the_namespace_of_the_release(file: Path) -> None:
    extra = {"demo-sevenfold-extra", "demo-text"}  # Whole manifests of the user's.
    own = [manifest for manifest in render(None, file) if manifest["metadata"]["name"] not in extra]

    assert {manifest["metadata"]["namespace"] for manifest in own} == {"models"}
    assert {manifest["metadata"]["labels"]["app.kubernetes.io/instance"] for manifest in own} == {"demo"}


@each_file
def test_pods_meet_the_pod_security_standard_restricted(file: Path) -> None:
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim"}
    allowed |= {"projected", "secret"}
    pods = list(pod_templates(render(None, file)))

    assert pods
    for pod in pods:
        spec, security = pod["spec"], pod["spec"]["securityContext"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, 10001, 10001)
        assert security["seccompProfile"]["type"] == "RuntimeDefault"
        assert all(volume.keys() - {"name"} <= allowed for volume in spec.get("volumes", []))
        for container in containers(pod):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not any("hostPort" in port for port in container.get("ports", []))


@each_file
def test_the_charts_own_containers_write_only_to_volumes_and_have_no_token(file: Path) -> None:
    own = {"server", "smoke", "fetch-models"}

    for pod in pod_templates(render(None, file)):
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False
        for container in containers(pod):
            if container["name"] in own:
                assert container["securityContext"]["readOnlyRootFilesystem"] is True
                assert "tmp" in {mount["name"] for mount in container["volumeMounts"]}


@each_file
def test_no_variable_mount_or_volume_is_there_twice(file: Path) -> None:
    for pod in pod_templates(render(None, file)):
        volumes = [volume["name"] for volume in pod["spec"].get("volumes", [])]
        assert len(set(volumes)) == len(volumes)
        for container in containers(pod):
            for names in (
                [entry["name"] for entry in container.get("env", [])],
                [mount["mountPath"] for mount in container.get("volumeMounts", [])],
            ):
                assert len(set(names)) == len(names)
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes)
