"""What a release needs and does not bring: Secrets, claims, classes. The harness creates them before it installs.

Pure functions of rendered objects.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tests.cluster.api import Object

_CONTENT = base64.b64encode(b"content of the test").decode()


def pod_specs(objects: Iterable[Object]) -> Iterator[Mapping[str, Any]]:
    """Yield the pod specs of Deployments, Jobs and Pods."""
    for item in objects:
        if item["kind"] == "Pod":
            yield item["spec"]
        elif item["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield item["spec"]["template"]["spec"]


def prerequisites(objects: Sequence[Object]) -> list[Object]:
    """Return the objects to create first: referenced by pods, and not part of the release.

    Optional references are left out, as a cluster may lack them.
    """
    own = {(item["kind"], item["metadata"]["name"]) for item in objects}
    needed: dict[tuple[str, str], Object] = {}
    for spec in pod_specs(objects):
        for item in [*_secrets(spec), *_config_maps(spec), *_claims(spec), *_classes(spec)]:
            needed.setdefault((item["kind"], item["metadata"]["name"]), item)
    return [item for key, item in needed.items() if key not in own]


def containers(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return all containers of a pod, those of its start included."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def _references(spec: Mapping[str, Any], kind: str) -> Iterator[tuple[str, list[str]]]:
    """Yield names of Secrets or ConfigMaps (`secret`, `configMap`), and the keys that are read from each."""
    for volume in spec.get("volumes", []):
        source = volume.get(kind, {})
        name = source.get("secretName") or source.get("name")
        if name and not source.get("optional"):
            yield name, [entry["key"] for entry in source.get("items", [])]
    for container in containers(spec):
        for entry in container.get("env", []):
            reference = entry.get("valueFrom", {}).get(f"{kind}KeyRef", {})
            if reference and not reference.get("optional"):
                yield reference["name"], [reference["key"]]
        for entry in container.get("envFrom", []):
            reference = entry.get(f"{kind}Ref", {})
            if reference and not reference.get("optional"):
                yield reference["name"], []


def _merged(references: Iterable[tuple[str, list[str]]]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for name, more in references:
        keys.setdefault(name, []).extend(key for key in more if key not in keys.get(name, []))
    return keys


def _secrets(spec: Mapping[str, Any]) -> list[Object]:
    references = _merged(_references(spec, "secret"))
    for entry in spec.get("imagePullSecrets", []):
        references.setdefault(entry["name"], [])
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "data": dict.fromkeys(keys or ["tls.crt", "tls.key"], _CONTENT),
        }
        for name, keys in references.items()
    ]


def _config_maps(spec: Mapping[str, Any]) -> list[Object]:
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": dict.fromkeys(keys, "text")}
        for name, keys in _merged(_references(spec, "configMap")).items()
    ]


def _claims(spec: Mapping[str, Any]) -> list[Object]:
    names = [volume["persistentVolumeClaim"]["claimName"] for volume in spec.get("volumes", []) if _is_claim(volume)]
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        for name in names
    ]


def _is_claim(volume: Mapping[str, Any]) -> bool:
    return "persistentVolumeClaim" in volume


def _classes(spec: Mapping[str, Any]) -> Iterator[Object]:
    if name := spec.get("runtimeClassName"):
        yield {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": name}
    name = spec.get("priorityClassName", "")
    if name and not name.startswith("system-"):
        metadata = {"name": name}
        yield {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": metadata, "value": 1000}


def node_labels(objects: Sequence[Object]) -> dict[str, str]:
    """Return the labels that pods require of a node."""
    return {key: value for spec in pod_specs(objects) for key, value in spec.get("nodeSelector", {}).items()}


def claims_of(objects: Sequence[Object]) -> list[Object]:
    """Return the claims among objects: each needs a volume."""
    return [item for item in objects if item["kind"] == "PersistentVolumeClaim"]


def is_kept(item: Object) -> bool:
    """Return whether Helm leaves an object in place when the release is uninstalled."""
    annotations = item["metadata"].get("annotations") or {}
    return bool(annotations.get("helm.sh/resource-policy") == "keep")
