"""A stand-in for the kubelet: runs a pod's own command on this machine, with the variables and probes of its spec.

The nodes of the test do not run containers. Here, one pod of a release is really started: with the arguments and the
environment that the API server has for it, this checkout in place of the image, and ports and folders of this machine
in place of the container's. Its probes are asked as the kubelet asks them, and `helm test` gets the exit status of the
command that its pod names.
"""

import http
import os
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loadtests.server import free_ports
from tests.cluster.api import Api, Object
from tests.cluster.control_plane import Cluster
from tests.cluster.drain import is_serving
from tests.cluster.helm import Helm
from tests.cluster.lifecycle import explained, namespace
from tests.cluster.processes import ClusterError, wait_until
from tests.cluster.report import Recorder, shorten

_RELEASE = "served"
_START_TIMEOUT_S = 180.0
_TEST_TIMEOUT_S = 150
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
MODELS = Path("models")


def run_stand_in(cluster: Cluster, helm: Helm, who: str, recorder: Recorder) -> None:
    """Install the defaults, start the server of the pod for real, ask its probes, and run `helm test` against it."""
    api, case = cluster.api, "real server"
    with namespace(api, f"served-{who.replace('.', '')}") as place:
        with recorder.step(case, who, "one pod"), explained(api, place):
            helm.install(_RELEASE, place)
        pod = wait_until(lambda: _serving_pod(api, place), "a pod serves", _START_TIMEOUT_S)
        container = pod["spec"]["containers"][0]
        environment = environment_of(container, lambda kind, name: api.get("v1", kind, place, name))
        log = cluster.folder / f"server-{who}.log"
        with _Server.start(container, environment, log) as server:
            with recorder.step(case, who, "probes") as step:
                step.detail = server.check_probes()
            with recorder.step(case, who, "helm test") as step:
                step.detail = _helm_test(cluster, helm, place, server)
            with recorder.step(case, who, "stop") as step:
                step.detail = server.stop(pod["spec"]["terminationGracePeriodSeconds"])


def _serving_pod(api: Api, place: str) -> Object | None:
    pods = api.list("v1", "Pod", place, {"app.kubernetes.io/instance": _RELEASE})
    return next((pod for pod in pods if is_serving(pod)), None)


def environment_of(container: Mapping[str, Any], read: Any) -> dict[str, str]:
    """Return the variables of a container. `read` returns a ConfigMap by kind and name.

    `env` takes precedence over `envFrom`, and later sources over earlier ones, as in Kubernetes.
    """
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        reference = source.get("configMapRef")
        if reference and not reference.get("optional"):
            variables |= read("ConfigMap", reference["name"]).get("data", {})
    variables |= {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}
    return variables


def on_this_machine(variables: Mapping[str, str], ports: Mapping[str, int], models: Path) -> dict[str, str]:
    """Return the variables with addresses and folders that exist outside the container.

    Args:
        variables: those of the container.
        ports: the port to listen on in place of each container port, by its name.
        models: the folder of models.
    """
    replaced = dict(variables)
    replaced["SEVENFOLD_HOST"] = "127.0.0.1"
    replaced["SEVENFOLD_PORT"] = str(ports["http"])
    replaced["SEVENFOLD_MODELS"] = str(models)
    if "SEVENFOLD_ADMIN_PORT" in variables:
        replaced["SEVENFOLD_ADMIN_PORT"] = str(ports["admin"])
    return replaced


def replace_service(
    arguments: Sequence[str], services: Mapping[tuple[str, int], str], ports: Mapping[str, int]
) -> list[str]:
    """Return arguments with the addresses of a Service replaced by those of this machine.

    Args:
        arguments: the arguments of a container.
        services: the name of a Service's port, by its host and number.
        ports: the port of this machine, by the name of the Service's port.

    Raises:
        ClusterError: an address is not that of a port of the Service.
    """
    replaced = []
    for argument in arguments:
        parts = urlsplit(argument)
        if parts.scheme in ("http", "https"):
            name = services.get((parts.hostname or "", parts.port or 0))
            if name is None:
                raise ClusterError(f"{argument} is not an address of a Service; there are {sorted(services)}")
            argument = f"{parts.scheme}://127.0.0.1:{ports[name]}{parts.path}"
        replaced.append(argument)
    return replaced


@dataclass
class _Server:
    container: Mapping[str, Any]
    ports: Mapping[str, int]
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    @contextmanager
    def start(cls, container: Mapping[str, Any], variables: Mapping[str, str], log: Path) -> Iterator["_Server"]:
        """Start the server of a container, and kill it afterwards if it still runs."""
        http, admin = free_ports(2)
        ports = {"http": http, "admin": admin}
        own = {name: text for name, text in os.environ.items() if not name.startswith("SEVENFOLD_")}
        with tempfile.TemporaryDirectory() as folder, log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", *container.get("args", [])],
                env=own | on_this_machine(variables, ports, MODELS.resolve()) | {"TMPDIR": folder},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                yield cls(container, ports, process, log)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()

    def check_probes(self) -> str:
        """Wait until the startup probe succeeds, then ask the others; return what was asked."""
        paths = []
        for name in _PROBES:
            if not (probe := self.container.get(name, {}).get("httpGet")):
                continue
            port = self.ports[str(probe["port"])]
            url = f"http://127.0.0.1:{port}{probe['path']}"
            wait_until(partial(self._answers, url), f"{name} {probe['path']} succeeds", _START_TIMEOUT_S)
            paths.append(f"{probe['path']} on port {probe['port']}")
        assert paths, "the container has no HTTP probes"
        return ", ".join(paths)

    def _answers(self, url: str) -> bool:
        if self.process.poll() is not None:
            raise ClusterError(f"the server ended with status {self.process.returncode}: {self._tail()}")
        try:
            with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310  # http, on loopback.
                return bool(response.status == 200)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.NOT_FOUND:
                raise ClusterError(f"the server has no {urlsplit(url).path}, which the chart probes") from error
            return False
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def stop(self, grace_s: float) -> str:
        """Send SIGTERM, as the kubelet does; the server has to end by itself within the pod's grace period."""
        self.process.terminate()
        try:
            status = self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"still runs {grace_s} s after SIGTERM: the kubelet would kill it") from None
        assert status == 0, f"ended with status {status}: {self._tail()}"
        return f"SIGTERM: ended with status 0 within the {grace_s} s of the pod"

    def _tail(self) -> str:
        return shorten(" ".join(self.log.read_text("utf-8", "replace").splitlines()[-4:]))


def _helm_test(cluster: Cluster, helm: Helm, place: str, server: _Server) -> str:
    """Run `helm test`, and be the kubelet of its pod: run its command, and report the exit status in its status."""
    api = cluster.api
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(_try_test(helm, place)), daemon=True)
    thread.start()
    pod = wait_until(lambda: _test_pod(api, place), "helm has created the pod of its test", _START_TIMEOUT_S)
    (container,) = pod["spec"]["containers"]
    services = {
        (f"{service['metadata']['name']}.{place}.svc", int(port["port"])): str(port["name"])
        for service in api.list("v1", "Service", place)
        for port in service["spec"]["ports"]
    }
    arguments = replace_service(container.get("args", []), services, server.ports)
    status, output = _run_command(arguments)
    api.patch(pod, {"status": finished_status(container["name"], status)}, subresource="status")
    thread.join(_TEST_TIMEOUT_S)
    assert status == 0, f"`{' '.join(arguments)}` ended with status {status}: {output}"
    assert outcome == [""], f"helm test: {outcome or 'did not end'}"
    return output


def _try_test(helm: Helm, place: str) -> str:
    try:
        helm.run("test", _RELEASE, "--namespace", place, "--timeout", f"{_TEST_TIMEOUT_S}s")
    except Exception as error:  # The thread's only way to say it.
        return str(error)
    return ""


def _test_pod(api: Api, place: str) -> Object | None:
    """Return the pod of the test once kwok says that it runs: before, kwok would replace another status."""
    for pod in api.list("v1", "Pod", place):
        is_test = (pod["metadata"].get("annotations") or {}).get("helm.sh/hook") == "test"
        if is_test and pod.get("status", {}).get("phase") == "Running":
            return pod
    return None


def _run_command(arguments: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "service", *arguments],
            capture_output=True,
            text=True,
            timeout=_TEST_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"did not end within {_TEST_TIMEOUT_S} s"
    return done.returncode, shorten(done.stdout + done.stderr)


def finished_status(container: str, exit_code: int) -> Object:
    """Return the status of a pod whose only container has ended."""
    return {
        "phase": "Succeeded" if exit_code == 0 else "Failed",
        "containerStatuses": [
            {
                "name": container,
                "image": "this checkout",
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": {"exitCode": exit_code, "reason": "Completed" if exit_code == 0 else "Error"}},
            }
        ],
    }
