"""The life of a release, for one file of values: strict validation, install, upgrade, rollback, twice, uninstall."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.cluster.api import Api, ApiError, Object
from tests.cluster.control_plane import Cluster, persistent_volume
from tests.cluster.helm import Helm, HelmError, Rendered
from tests.cluster.prerequisites import claims_of, is_kept, node_labels, prerequisites
from tests.cluster.processes import ClusterError, wait_until
from tests.cluster.report import Recorder, shorten

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
CHANGE = ("--set", "server.maxQueue=300")
_SETTLE_S = 60.0
_RELEASE, _SECOND = "first", "second"
_PER_CLUSTER = {"service.nodePort": "30081"}
"""What two releases cannot share, and what the second one is given instead."""
_SYSTEM = {("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default")}
_EPHEMERAL = {"Event", "Lease", "PodMetrics", "NodeMetrics"}

Check = Callable[[Api, str, Object], str | None]
"""Looks at an object in its namespace; returns what it saw, or None if that is not (yet) as it should be."""


@dataclass(frozen=True)
class Case:
    """A file of values, installed with one version of Helm into a namespace of its own."""

    name: str
    values: Path
    helm: Helm
    who: str
    change: Sequence[str]

    @property
    def namespace(self) -> str:
        """The namespace: names of releases end up in it, so that it says which case it was."""
        return f"{self.name}-{re.sub('[^a-z0-9]', '', self.who.lower())}"

    @property
    def flags(self) -> tuple[str | Path, ...]:
        """The flags that choose the values."""
        return ("--values", self.values)


@dataclass(frozen=True)
class Template:
    """What a Deployment's pods are made from: the hash of the template, and that of its settings."""

    pod_hash: str
    checksum: str


@contextmanager
def namespace(api: Api, name: str) -> Iterator[str]:
    """Create a namespace that enforces the Pod Security Standard "restricted", and delete it afterwards."""
    item = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
    api.create(item)
    wait_until(lambda: api.find("v1", "ServiceAccount", name, "default"), f"the namespace {name} is set up", _SETTLE_S)
    try:
        yield name
    finally:
        api.delete(item)


def run_case(cluster: Cluster, case: Case, recorder: Recorder) -> None:
    """Take a release through its life; after the first step that fails, the rest is left out."""
    api = cluster.api
    with recorder.case(case.name, case.who), namespace(api, case.namespace):
        _live(cluster, case, recorder)


def _live(cluster: Cluster, case: Case, recorder: Recorder) -> None:
    api, helm, place = cluster.api, case.helm, case.namespace
    with recorder.step(case.name, case.who, "validate") as step:
        rendered = helm.dry_run(_RELEASE, place, *case.flags)
        brought = prepare(api, place, rendered)
        validate(api, place, rendered.objects)
        step.detail = f"{len(rendered.objects)} objects, {len(rendered.hooks)} hooks"
        step.detail += f"; created before: {', '.join(brought)}" if brought else ""
    with recorder.step(case.name, case.who, "install") as step:
        with explained(api, place):
            helm.install(_RELEASE, place, *case.flags)
        step.detail = check_running(api, place, rendered.objects)
        validate(api, place, rendered.hooks)  # Only now, as they need the release's service account.
        first = templates(api, place)
    with recorder.step(case.name, case.who, "no change"):
        helm.upgrade(_RELEASE, place, *case.flags)
        assert templates(api, place) == first, "an upgrade that changes nothing replaces the pods"
    with recorder.step(case.name, case.who, "upgrade") as step:
        with explained(api, place):
            helm.upgrade(_RELEASE, place, *case.flags, *case.change)
        check_running(api, place, rendered.objects)
        step.detail = check_rolled(first, templates(api, place))
    with recorder.step(case.name, case.who, "rollback") as step:
        helm.rollback(_RELEASE, place, 1)
        check_running(api, place, rendered.objects)
        assert templates(api, place) == first, "the rollback did not bring the first template back"
        step.detail = f"pods of template {', '.join(each.pod_hash for each in first.values())} again"
    with recorder.step(case.name, case.who, "twice") as step:
        step.detail = _second_release(cluster, case, rendered)
    with recorder.step(case.name, case.who, "uninstall") as step:
        helm.uninstall(_RELEASE, place)
        kept = {(item["kind"], item["metadata"]["name"]) for item in rendered.objects if is_kept(item)}
        left = wait_until_gone(api, place, _RELEASE, kept)
        step.detail = "left: " + (", ".join(sorted(left)) or "nothing")


def prepare(api: Api, place: str, rendered: Rendered) -> list[str]:
    """Create what a release needs; return its names. Volumes and node labels are made to fit."""
    every = [*rendered.objects, *rendered.hooks]
    needed = prerequisites(every)
    for item in needed:
        scoped = api.resource(item["apiVersion"], item["kind"]).namespaced
        if api.find(item["apiVersion"], item["kind"], place if scoped else "", item["metadata"]["name"]) is None:
            api.create(item, place)
    for claim in claims_of([*needed, *rendered.objects]):
        metadata = {"namespace": place, "name": claim["metadata"]["name"]}
        name = f"{place}-{metadata['name']}"
        if api.find("v1", "PersistentVolume", "", name) is None:
            api.create(persistent_volume(name, {"metadata": metadata, "spec": claim["spec"]}))
    if labels := node_labels(every):
        for item in api.list("v1", "Node"):
            if item["metadata"]["name"].startswith("gpu") or all("gpu" not in key for key in labels):
                node = {"apiVersion": "v1", "kind": "Node", "metadata": item["metadata"]}
                api.patch(node, {"metadata": {"labels": labels}})
    return [f"{item['kind']} {item['metadata']['name']}" for item in needed]


def validate(api: Api, place: str, objects: Sequence[Object]) -> None:
    """Have the API server check every object, strictly. A warning (deprecation, Pod Security) counts as an error."""
    problems = []
    api.warnings.clear()
    for item in objects:
        try:
            api.create(item, place, dry_run=True)
        except ApiError as error:
            problems.append(f"{item['kind']} {item['metadata']['name']}: {error.message}")
        problems += [f"{item['kind']} {item['metadata']['name']}: warning: {text}" for text in api.warnings]
        api.warnings.clear()
    assert not problems, "; ".join(problems)


def check_running(api: Api, place: str, objects: Sequence[Object]) -> str:
    """Check that a release does what its objects say; return what was seen."""
    for item in objects:
        assert api.find(item["apiVersion"], item["kind"], place, item["metadata"]["name"]), (
            f"{item['kind']} {item['metadata']['name']} is not on the server"
        )
    seen = []
    for item in objects:
        if check := _CHECKS.get(item["kind"]):
            what = f"{item['kind']} {item['metadata']['name']} {check.__name__.strip('_').replace('_', ' ')}"
            seen.append(wait_until(partial(_run_check, api, place, item, check), what, _SETTLE_S))
    if problems := rejected_pods(api, place):
        raise ClusterError("; ".join(problems))
    return ", ".join(text for text in seen if text)


def _run_check(api: Api, place: str, item: Object, check: Check) -> str | None:
    current = api.get(item["apiVersion"], item["kind"], place, item["metadata"]["name"])
    return check(api, place, current)


def _is_available(api: Api, place: str, item: Object) -> str | None:
    status, wanted = item.get("status", {}), item["spec"]["replicas"]
    updated = status.get("updatedReplicas", 0) == status.get("replicas", 0) == wanted
    if status.get("observedGeneration") != item["metadata"]["generation"] or not updated:
        return None
    return f"{wanted} pods available" if status.get("availableReplicas", 0) == wanted else None


def _has_endpoints(api: Api, place: str, item: Object) -> str | None:
    name = item["metadata"]["name"]
    slices = api.list("discovery.k8s.io/v1", "EndpointSlice", place, {"kubernetes.io/service-name": name})
    ready = {
        address
        for each in slices
        for endpoint in each.get("endpoints") or []
        for address in endpoint["addresses"]
        if endpoint["conditions"].get("ready")
    }
    pods = api.list("v1", "Pod", place, item["spec"]["selector"])
    addresses = {pod["status"].get("podIP") for pod in pods if "deletionTimestamp" not in pod["metadata"]}
    ports = {port["name"] for each in slices for port in each.get("ports") or []}
    wanted = {port["name"] for port in item["spec"]["ports"]}
    return f"{len(ready)} endpoints" if ready and ready == addresses and ports == wanted else None


def _holds_the_minimum(api: Api, place: str, item: Object) -> str | None:
    """Return whether the HPA controller has set the number of pods, which the chart leaves to it."""
    target = item["spec"]["scaleTargetRef"]
    pods = api.get(target["apiVersion"], target["kind"], place, target["name"])["spec"]["replicas"]
    minimum = item["spec"]["minReplicas"]
    return f"HPA holds {pods} pods" if pods >= minimum else None


def _allows_a_disruption(api: Api, place: str, item: Object) -> str | None:
    allowed = item.get("status", {}).get("disruptionsAllowed", 0)
    return f"PDB allows {allowed}" if allowed >= 1 else None


def _is_bound(api: Api, place: str, item: Object) -> str | None:
    return "claim bound" if item.get("status", {}).get("phase") == "Bound" else None


_CHECKS: Mapping[str, Check] = {
    "HorizontalPodAutoscaler": _holds_the_minimum,
    "Deployment": _is_available,
    "Service": _has_endpoints,
    "PodDisruptionBudget": _allows_a_disruption,
    "PersistentVolumeClaim": _is_bound,
}


def rejected_pods(api: Api, place: str) -> list[str]:
    """Return the messages of events that say that a pod could not be created."""
    events = api.list("v1", "Event", place)
    return sorted({shorten(event["message"]) for event in events if event["reason"] == "FailedCreate"})


@contextmanager
def explained(api: Api, place: str) -> Iterator[None]:
    """Add to Helm's error, which often says only that time is up, what the scheduler and the controllers say."""
    try:
        yield
    except HelmError as error:
        events = api.list("v1", "Event", place)
        reasons = sorted({shorten(event["message"]) for event in events if event["type"] == "Warning"})
        raise HelmError("; ".join([str(error), *reasons])) from error


def templates(api: Api, place: str) -> dict[str, Template]:
    """Return the template of each Deployment of the first release, from the ReplicaSet that has its pods."""
    found = {}
    for each in api.list("apps/v1", "ReplicaSet", place, {"app.kubernetes.io/instance": _RELEASE}):
        if each["spec"]["replicas"]:
            (owner,) = each["metadata"]["ownerReferences"]
            assert owner["name"] not in found, f"{owner['name']} has pods of two templates after a rollout"
            annotations = each["spec"]["template"]["metadata"].get("annotations", {})
            labels = each["metadata"]["labels"]
            found[owner["name"]] = Template(labels["pod-template-hash"], annotations.get("checksum/config", ""))
    assert found, "no ReplicaSet has pods"
    return found


def check_rolled(before: Mapping[str, Template], after: Mapping[str, Template]) -> str:
    """Check that a changed setting has replaced the pods."""
    assert before.keys() == after.keys(), f"the Deployments are {sorted(after)} now, and were {sorted(before)}"
    for name, template in after.items():
        assert template.pod_hash != before[name].pod_hash, f"{name}: the changed setting did not replace the pods"
        assert template.checksum != before[name].checksum, f"{name}: checksum/config has not changed"
    return ", ".join(f"{before[name].pod_hash} → {after[name].pod_hash}" for name in after)


def _second_release(cluster: Cluster, case: Case, first: Rendered) -> str:
    """Install the same values under another name, check that neither has the other's pods, and uninstall it."""
    api, helm, place = cluster.api, case.helm, case.namespace
    text = case.values.read_text("utf-8")
    other = [f"--set={key}={value}" for key, value in _PER_CLUSTER.items() if key.rpartition(".")[2] in text]
    rendered = helm.dry_run(_SECOND, place, *case.flags, *other)
    prepare(api, place, rendered)
    with explained(api, place):
        helm.install(_SECOND, place, *case.flags, *other)
    seen = check_running(api, place, rendered.objects)
    check_running(api, place, first.objects)
    helm.uninstall(_SECOND, place)
    kept = {(item["kind"], item["metadata"]["name"]) for item in rendered.objects if is_kept(item)}
    wait_until_gone(api, place, _SECOND, kept)
    check_running(api, place, first.objects)
    return seen


def wait_until_gone(api: Api, place: str, release: str, kept: set[tuple[str, str]]) -> set[str]:
    """Wait until a release has left nothing but what is kept on purpose; return what is left.

    Raises ClusterError with the names of what does not go.
    """
    left: set[tuple[str, str]] = set()

    def is_gone() -> bool:
        left.clear()
        left.update(_objects_of(api, place, release))
        return left <= kept

    try:
        wait_until(is_gone, "everything is gone", _SETTLE_S)
    except ClusterError:
        names = ", ".join(f"{kind} {name}" for kind, name in sorted(left - kept))
        raise ClusterError(f"`helm uninstall` leaves {names}") from None
    missing = kept - left
    assert not missing, f"annotated as kept, but gone: {sorted(missing)}"
    return {f"{kind} {name}" for kind, name in left}


def _objects_of(api: Api, place: str, release: str) -> Iterator[tuple[str, str]]:
    """Yield kind and name of what belongs to a release: by label, by Helm's own record, or by its owner's name."""
    for resource in api.namespaced_kinds():
        if resource.kind in _EPHEMERAL:
            continue
        for item in api.request("GET", resource.path(place))["items"]:
            metadata = item["metadata"]
            labels = metadata.get("labels") or {}
            is_own = labels.get("app.kubernetes.io/instance") == release or labels.get("name") == release
            if is_own or metadata["name"].startswith(f"{release}-"):
                yield resource.kind, metadata["name"]
