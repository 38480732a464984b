"""What must be refused: bad values by the chart, and pods that break the rules of their namespace by the cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.cluster.api import Api, ApiError, Object
from tests.cluster.control_plane import Cluster
from tests.cluster.helm import Helm, HelmError
from tests.cluster.lifecycle import namespace, rejected_pods
from tests.cluster.processes import ClusterError, wait_until
from tests.cluster.report import Recorder, shorten

_TIMEOUT_S = 60.0
_FORBIDDEN = 403


@dataclass(frozen=True)
class BadValues:
    """Values that the chart refuses, and what its message names, in lower case."""

    flags: Sequence[str]
    named: Sequence[str]


BAD_VALUES: Mapping[str, BadValues] = {
    "unknown key": BadValues(["--set", "replicas=3"], ["replicas"]),
    "unknown setting": BadValues(["--set", "server.maxQueu=3"], ["maxqueu"]),
    "wrong type": BadValues(["--set-string", "replicaCount=three"], ["replicacount"]),
    "HPA and KEDA": BadValues(["--set", "autoscaling.mode=hpa,autoscaling.keda.queueDepth=4"], ["keda"]),
    "unknown scaler": BadValues(["--set", "autoscaling.mode=both"], ["autoscaling", "mode"]),
    "no claim": BadValues(["--set", "models.source=pvc"], ["pvc"]),
    "nothing to fetch": BadValues(["--set", "models.source=fetch"], ["fetch"]),
    "grace too short": BadValues(["--set", "lifecycle.terminationGracePeriodSeconds=3"], ["terminationgraceperiod"]),
}


def run_bad_values(cluster: Cluster, helm: Helm, who: str, recorder: Recorder) -> None:
    """Install the chart with bad values; each has to be refused with a message that names what is wrong."""
    with namespace(cluster.api, f"refused-{who.replace('.', '')}") as place:
        for name, bad in BAD_VALUES.items():
            with recorder.case(name, who), recorder.step(name, who, "refused") as step:
                step.detail = _message(helm, place, bad)
                assert not cluster.api.list("apps/v1", "Deployment", place), "objects were created all the same"


def _message(helm: Helm, place: str, bad: BadValues) -> str:
    try:
        helm.install("refused", place, *bad.flags)
    except HelmError as error:
        message = str(error)
        lacking = [word for word in bad.named if word not in message.lower()]
        if lacking or ("execution error" in message and "nil pointer" in message):
            raise ClusterError(f"refused, but the message does not name {', '.join(lacking)}: {message}") from error
        return shorten(message)
    helm.uninstall("refused", place)
    raise ClusterError(f"accepted: helm install {' '.join(bad.flags)}")


def bad_pod() -> Object:
    """Return a pod that the standard "restricted" forbids, in several ways."""
    container = {"name": "root", "image": "example", "securityContext": {"privileged": True, "runAsUser": 0}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": {"containers": [container]}}


def run_controls(cluster: Cluster, recorder: Recorder) -> None:
    """Prove that the checks of the other steps can fail: Pod Security, and strictness about fields."""
    api = cluster.api
    with namespace(api, "controls") as place:
        with recorder.step("control", "-", "root pod") as step:
            step.detail = _refusal(api, bad_pod(), place, _FORBIDDEN, "violates PodSecurity")
        with recorder.step("control", "-", "root deploy") as step:
            api.warnings.clear()
            api.create(deployment_of(bad_pod()["spec"]), place)
            assert any("PodSecurity" in text for text in api.warnings), "no warning about a Deployment of such pods"
            messages = wait_until(lambda: rejected_pods(api, place), "its pods are refused", _TIMEOUT_S)
            step.detail = messages[0]
        with recorder.step("control", "-", "wrong field") as step:
            item = deployment_of(bad_pod()["spec"])
            item["metadata"]["name"] = "wrong"
            item["spec"]["replica"] = 1
            step.detail = _refusal(api, item, place, 400, 'unknown field "spec.replica"')


def _refusal(api: Api, item: Object, place: str, status: int, text: str) -> str:
    try:
        api.create(item, place)
    except ApiError as error:
        if error.status != status or text not in error.message:
            raise ClusterError(f"refused for another reason: {error}") from error
        return shorten(error.message)
    raise ClusterError(f"the API server accepted {item['kind']} {item['metadata']['name']}")


def deployment_of(spec: Object) -> Object:
    """Return a Deployment of one such pod."""
    labels = {"app": "root"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "root"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
