"""A rollout and a drain: pods are replaced while others serve, and evictions keep to the disruption budget."""

import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.api import Api, ApiError, Object
from tests.cluster.control_plane import NODES, Cluster
from tests.cluster.helm import Helm
from tests.cluster.lifecycle import CHANGE, explained, namespace
from tests.cluster.processes import ClusterError, wait_until
from tests.cluster.report import Recorder

_RELEASE = "drained"
_LABELS = {"app.kubernetes.io/instance": _RELEASE}
_TIMEOUT_S = 60.0
_TOO_MANY = 429


def run_drain(cluster: Cluster, helm: Helm, who: str, recorder: Recorder) -> None:
    """Roll two replicas, evict both at once, drain the node that has both, and evict a single one: it has no budget."""
    api = cluster.api
    with namespace(api, f"drain-{who.replace('.', '')}") as place:
        with recorder.step("rollout and drain", who, "two pods") as step, explained(api, place):
            helm.install(_RELEASE, place, "--set", "replicaCount=2")
            wait_until(lambda: _exactly(api, place, 2), "two pods serve", _TIMEOUT_S)
            step.detail = "2 replicas"
        with recorder.step("rollout and drain", who, "roll") as step:
            step.detail = _roll(api, helm, place)
        with recorder.step("rollout and drain", who, "evict") as step:
            step.detail = _evict_both(api, place)
        with recorder.step("rollout and drain", who, "drain") as step:
            step.detail = _drain(cluster, place)
        with recorder.step("rollout and drain", who, "one replica") as step, explained(api, place):
            helm.upgrade(_RELEASE, place, "--set", "replicaCount=1")
            (pod,) = wait_until(lambda: _exactly(api, place, 1), "one pod is left", _TIMEOUT_S)
            evict(api, pod)
            step.detail = "a single replica does not block a drain"


def evict(api: Api, pod: Object) -> None:
    """Ask for an eviction, as `kubectl drain` does. Raises ApiError with status 429 if a budget forbids it."""
    metadata = pod["metadata"]
    path = api.resource("v1", "Pod").path(metadata["namespace"], metadata["name"])
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
    }
    api.request("POST", f"{path}/eviction", body)


def ready_pods(api: Api, place: str) -> list[Object]:
    """Return the pods of the release that serve: ready, and not being deleted."""
    return [pod for pod in api.list("v1", "Pod", place, _LABELS) if is_serving(pod)]


def is_serving(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod is ready and not being deleted."""
    conditions = pod.get("status", {}).get("conditions", [])
    is_ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return is_ready and "deletionTimestamp" not in pod["metadata"]


def _exactly(api: Api, place: str, count: int) -> list[Object] | None:
    pods = ready_pods(api, place)
    budgets = api.list("policy/v1", "PodDisruptionBudget", place)
    settled = all(budget["status"].get("disruptionsAllowed", 0) >= 1 for budget in budgets)
    return pods if len(pods) == count and settled else None


def _roll(api: Api, helm: Helm, place: str) -> str:
    """Replace both pods by a changed setting, and watch how many pods serve meanwhile."""
    with _Watch(api.copy(), place) as watch, explained(api, place):
        helm.upgrade(_RELEASE, place, "--reuse-values", *CHANGE)
        wait_until(lambda: _exactly(api, place, 2), "two new pods serve", _TIMEOUT_S)
    assert watch.fewest >= 2, f"only {watch.fewest} of 2 pods served during a rollout"
    return f"at least {watch.fewest} of 2 pods served in {watch.looks} looks"


def _evict_both(api: Api, place: str) -> str:
    first, second = wait_until(lambda: _exactly(api, place, 2), "two pods serve", _TIMEOUT_S)
    # On a fake node another pod would be ready at once, and the budget would allow the next eviction.
    with _cordoned(api, [name for name in NODES if not name.startswith("gpu")]):
        evict(api, first)
        try:
            evict(api, second)
        except ApiError as error:
            if error.status != _TOO_MANY:
                raise
            return f"the second of two evictions at once is refused: {error.message}"
    raise ClusterError("both replicas could be evicted at once: no disruption budget protects them")


def _drain(cluster: Cluster, place: str) -> str:
    """Bring both pods onto one node, drain it with kubectl, and watch how many pods serve meanwhile."""
    api = cluster.api
    node, *others = [name for name in NODES if not name.startswith("gpu")]
    with _cordoned(api, others):
        for pod in wait_until(lambda: _exactly(api, place, 2), "two pods serve", _TIMEOUT_S):
            if pod["spec"]["nodeName"] != node:
                api.delete(pod)
        wait_until(lambda: _all_on(api, place, node), f"both pods are on {node}", _TIMEOUT_S)
    try:
        with _Watch(api.copy(), place) as watch:
            _kubectl_drain(cluster, node)
            wait_until(lambda: _exactly(api, place, 2), "two pods serve elsewhere", _TIMEOUT_S)
    finally:
        _set_unschedulable(api, node, None)
    places = {pod["spec"]["nodeName"] for pod in ready_pods(api, place)}
    assert node not in places, f"a pod is still on {node}, which was drained"
    assert watch.fewest >= 1, "no pod served during the drain"
    return f"{node} drained; at least {watch.fewest} of 2 pods served in {watch.looks} looks; now on {sorted(places)}"


def _all_on(api: Api, place: str, node: str) -> bool:
    pods = _exactly(api, place, 2)
    return pods is not None and all(pod["spec"]["nodeName"] == node for pod in pods)


@contextmanager
def _cordoned(api: Api, nodes: list[str]) -> Iterator[None]:
    try:
        for node in nodes:
            _set_unschedulable(api, node, True)
        yield
    finally:
        for node in nodes:
            _set_unschedulable(api, node, None)


def _set_unschedulable(api: Api, node: str, value: bool | None) -> None:
    item = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}
    api.patch(item, {"spec": {"unschedulable": value}})


def _kubectl_drain(cluster: Cluster, node: str) -> None:
    command = [str(cluster.binaries.kubectl), f"--kubeconfig={cluster.kubeconfig}", "drain", node]
    flags = ["--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={_TIMEOUT_S:.0f}s"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=2 * _TIMEOUT_S, check=False)
    if done.returncode:
        raise ClusterError(f"kubectl drain failed: {done.stderr.strip()}")


@dataclass
class _Watch:
    """Counts, over and over in a thread, the pods that serve; keeps the smallest number."""

    api: Api
    place: str
    fewest: int = 2**31
    looks: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "_Watch":
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.api.close()

    def _look(self) -> None:
        while not self._ended.is_set():
            self.fewest = min(self.fewest, len(ready_pods(self.api, self.place)))
            self.looks += 1
