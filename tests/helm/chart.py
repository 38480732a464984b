"""Renders the chart with either Helm, and finds things in what it renders."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.external_tools import require_tool

CHART = Path(__file__).parents[2] / "helm"
HELMS = ("helm3", "helm4")
VALUES_FILES = tuple(sorted((CHART / "ci").glob("*-values.yaml")))
KUBERNETES = "1.33"
"""Version to render for where nothing else is said."""
_TIMEOUT_S = 60

Manifest = dict[str, Any]


class Refused(Exception):
    """Helm refused to render the chart; the message is what it printed."""


class _Loader(yaml.CSafeLoader):
    """Refuses keys that are there twice: YAML's own rule, which PyYAML does not keep."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    if len(set(keys)) < len(keys):
        raise ValueError(f"a key is there twice: {keys}")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def run_helm(helm: str, *arguments: str | Path, text: str = "", folder: Path | None = None) -> str:
    """Run a Helm command, with a text on its standard input; return what it printed. Raises Refused."""
    command = [require_tool(helm), *arguments]
    done = subprocess.run(
        command, input=text, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise Refused(done.stdout + done.stderr)
    return done.stdout


@cache
def _render(
    helm: str, files: tuple[Path, ...], values: str, release: str, namespace: str, kubernetes: str, chart: Path
) -> list[Manifest]:
    options = [option for file in files for option in ("--values", file)]
    place = ["--namespace", namespace, "--kube-version", kubernetes]
    printed = run_helm(helm, "template", release, chart, *place, *options, "--values", "-", text=values)
    return [document for document in yaml.load_all(printed, _Loader) if document]


def render(
    values: Mapping[str, Any] | None = None,
    *files: Path,
    helm: str = "helm4",
    release: str = "demo",
    namespace: str = "models",
    kubernetes: str = KUBERNETES,
    chart: Path = CHART,
) -> list[Manifest]:
    """Render the chart with values, over those of files. Raises Refused."""
    return _render(helm, files, json.dumps(values or {}, ensure_ascii=False), release, namespace, kubernetes, chart)


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    """Return the manifests of a kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def only(manifests: Sequence[Manifest], kind: str) -> Manifest:
    """Return the manifest of a kind that there is one of."""
    (manifest,) = of_kind(manifests, kind)
    return manifest


def pod_templates(manifests: Sequence[Manifest]) -> Iterator[Manifest]:
    """Yield the metadata and spec of every pod that the manifests lead to."""
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest
        elif "template" in manifest.get("spec", {}):
            yield manifest["spec"]["template"]


def containers(pod: Manifest) -> list[Manifest]:
    """Return the containers of a pod, with those that initialise it."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def server(manifests: Sequence[Manifest]) -> Manifest:
    """Return the container of the server."""
    (pod,) = pod_templates(of_kind(manifests, "Deployment"))
    return next(container for container in pod["spec"]["containers"] if container["name"] == "server")


def settings(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Return the settings that the server's container gets from the chart's ConfigMap."""
    (found,) = (
        config for config in of_kind(manifests, "ConfigMap") if config["metadata"]["name"].endswith("-settings")
    )
    return found["data"]


def variables(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """Return the variables of the server's container that are not in the ConfigMap."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in server(manifests).get("env", [])}
