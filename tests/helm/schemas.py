"""Checks manifests against the schemas of Kubernetes itself and of the CRDs, and refuses unknown fields."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import jsonschema
import yaml
from kubernetes_validate.utils import SchemaNotFoundError, all_versions, schema_contents
from referencing import Registry, Resource

from tests.external_tools import find_crds
from tests.helm.chart import Manifest

OLDEST = (1, 29)
"""The oldest version that the chart supports."""
VERSIONS = tuple(
    version.removesuffix(".0")
    for version in dict.fromkeys(all_versions())
    if tuple(map(int, version.split(".")[:2])) >= OLDEST
)
CRD_PROJECTS = {
    "keda.sh": "keda",
    "monitoring.coreos.com": "prometheus-operator",
    "gateway.networking.k8s.io": "gateway-api",
    "serving.kserve.io": "kserve",
    "ray.io": "kuberay",
    "trainer.kubeflow.org": "trainer",
}


class _CrdLoader(yaml.CSafeLoader):
    """Reads a bare `=`, which is an operator in one of the CRDs, as text: PyYAML has no constructor for it."""


_CrdLoader.add_constructor("tag:yaml.org,2002:value", yaml.CSafeLoader.construct_yaml_str)


class NoSchema(Exception):
    """The CRDs that a manifest needs were not fetched."""


@cache
def _definitions(version: str) -> Resource[Any]:
    return Resource.from_contents(
        schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    )


@cache
def _kubernetes_validator(kind: str, api: str, version: str) -> jsonschema.Draft202012Validator:
    group, _, level = api.rpartition("/")
    name = "-".join(filter(None, [kind.lower(), group.split(".")[0], level]))
    schema = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/{name}.json", version)
    registry = Resource.from_contents(schema) @ Registry()
    return jsonschema.Draft202012Validator(schema, registry=_definitions(version) @ registry)


def _strict(schema: Any) -> Any:
    """Return a CRD's schema that refuses unknown fields, as a server with strict field validation does."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and isinstance(schema.get("properties"), Mapping) and not is_open:
        strict["additionalProperties"] = False
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        strict["type"] = [schema["type"], "null"]
    return strict


@cache
def _crd_validators(project: str) -> dict[tuple[str, str], jsonschema.Draft202012Validator]:
    folder = find_crds(project)
    if folder is None:
        raise NoSchema(f"the CRDs of {project} are not installed; `make tools` fetches them")
    validators = {}
    for file in folder.glob("*.yaml"):
        for crd in yaml.load_all(file.read_text(), _CrdLoader):
            if not crd or crd["kind"] != "CustomResourceDefinition":
                continue
            spec = crd["spec"]
            for version in spec["versions"]:
                schema = _strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                api = f"{spec['group']}/{version['name']}"
                validators[api, spec["names"]["kind"]] = jsonschema.Draft202012Validator(schema)
    return validators


def _validator(manifest: Manifest, version: str) -> jsonschema.Draft202012Validator:
    api, kind = manifest["apiVersion"], manifest["kind"]
    if project := CRD_PROJECTS.get(api.partition("/")[0]):
        return _crd_validators(project)[api, kind]
    try:
        return _kubernetes_validator(kind, api, version)
    except (FileNotFoundError, SchemaNotFoundError):
        raise AssertionError(f"Kubernetes {version} has no {kind} in {api}") from None


@cache
def _problems(text: str, version: str) -> tuple[str, ...]:
    manifest = json.loads(text)
    errors = _validator(manifest, version).iter_errors(manifest)
    return tuple(f"{manifest['kind']}: {error.json_path}: {error.message}" for error in errors)


def problems(manifest: Manifest, version: str) -> list[str]:
    """Return what is wrong with a manifest for a version of Kubernetes. Raises NoSchema."""
    return list(_problems(json.dumps(manifest, sort_keys=True), version))
