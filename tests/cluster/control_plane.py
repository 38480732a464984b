"""A Kubernetes control plane on this machine, for as long as a run lasts.

etcd, kube-apiserver, kube-controller-manager and kube-scheduler are the real programs. Nodes and containers are not:
kwok keeps nodes alive that do not exist, and says of every pod that is assigned to one that it runs and is ready. So
everything that the API server and the controllers decide is decided for real (validation, Pod Security, quotas,
rollouts, evictions, garbage collection), and nothing that a container would do is.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trustme
import yaml

from loadtests.server import free_ports
from tests.cluster.api import Api, ApiError, Object
from tests.cluster.processes import ClusterError, Processes, wait_until
from tests.cluster.tools import Binaries
from tests.external_tools import CACHE

_TOKEN = "token-of-a-cluster-on-loopback"  # noqa: S105  # The cluster lives for minutes, on loopback.
_START_TIMEOUT_S = 120
NODES = ("node-a", "node-b", "gpu-a", "gpu-b")
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
CRDS = {
    "keda": ("scaledobjects.keda.sh", "triggerauthentications.keda.sh"),
    "prometheus-operator": tuple(
        f"{kind}.monitoring.coreos.com" for kind in ("servicemonitors", "podmonitors", "prometheusrules")
    ),
    "gateway-api": ("httproutes.gateway.networking.k8s.io", "gateways.gateway.networking.k8s.io"),
}
"""The custom kinds that the chart uses: project, and names of its definitions."""
EXTRA_CRDS = {
    "kserve": ("servingruntimes.serving.kserve.io", "inferenceservices.serving.kserve.io"),
    "trainer": ("trainjobs.trainer.kubeflow.org", "trainingruntimes.trainer.kubeflow.org"),
    "kuberay": ("rayservices.ray.io",),
}
"""Those that helm/extras uses. The API server takes several seconds for each of them."""
_IMAGE_VOLUME_BY_DEFAULT = 35
"""The minor version of Kubernetes in which volumes from images are on by default."""


@dataclass(frozen=True)
class Cluster:
    """A running control plane.

    Attributes:
        kubeconfig: a file with which helm and kubectl reach it.
        folder: the folder of its logs and files.
        crds: names of the projects whose CRDs are installed, with the versions of their modules.
    """

    api: Api
    binaries: Binaries
    processes: Processes
    kubeconfig: Path
    folder: Path
    crds: Mapping[str, str]


@contextmanager
def run_cluster(binaries: Binaries, folder: Path) -> Iterator[Cluster]:
    """Start a control plane with four nodes and the CRDs that were fetched, and end it afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sevenfold-etcd-")))
        processes = stack.enter_context(Processes(folder))
        etcd_port, peer_port, port = free_ports(3)
        files = _write_credentials(folder, port)
        processes.start("etcd", _etcd_command(binaries, data, etcd_port, peer_port))
        processes.start("kube-apiserver", apiserver_command(binaries, folder, port, etcd_port))
        api = Api(f"https://127.0.0.1:{port}", _TOKEN, folder / "ca.pem")
        stack.callback(api.close)
        _wait_for_api(api, processes)
        _start_controllers(binaries, processes, folder, files)
        crds = install_crds(api, CRDS)
        _create_basics(api)
        wait_until(lambda: _all_ready(api, processes), "the nodes are ready", _START_TIMEOUT_S)
        yield Cluster(api, binaries, processes, files, folder, crds)


def _write_credentials(folder: Path, port: int) -> Path:
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost", "kubernetes.default.svc")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    server.private_key_pem.write_to_path(str(folder / "server.key"))
    (folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    accounts = authority.issue_cert("service-accounts.invalid")
    accounts.private_key_pem.write_to_path(str(folder / "accounts.key"))
    (folder / "tokens.csv").write_text(f'{_TOKEN},admin,admin,"system:masters"\n')
    name = "sevenfold-test"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [
            {
                "name": name,
                "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(folder / "ca.pem")},
            }
        ],
        "users": [{"name": name, "user": {"token": _TOKEN}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }
    (folder / "kubeconfig.yaml").write_text(yaml.safe_dump(config))
    for secret in ("server.key", "accounts.key", "tokens.csv", "kubeconfig.yaml"):
        (folder / secret).chmod(0o600)
    return folder / "kubeconfig.yaml"


def _etcd_command(binaries: Binaries, data: Path, port: int, peer_port: int) -> list[str]:
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    return [
        str(binaries.etcd),
        f"--data-dir={data}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
    ]


def apiserver_command(binaries: Binaries, folder: Path, port: int, etcd_port: int) -> list[str]:
    """Return the command that starts the API server: TLS, tokens, RBAC, and the default admission plugins."""
    gates = [] if int(binaries.version.split(".")[1]) >= _IMAGE_VOLUME_BY_DEFAULT else ["ImageVolume=true"]
    return [
        str(binaries.apiserver),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--secure-port={port}",
        f"--tls-cert-file={folder}/server.pem",
        f"--tls-private-key-file={folder}/server.key",
        f"--token-auth-file={folder}/tokens.csv",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",  # As in every cluster: refusing such pods is left to Pod Security.
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder}/accounts.key",
        f"--service-account-signing-key-file={folder}/accounts.key",
        "--service-cluster-ip-range=10.96.0.0/16",
        *(f"--feature-gates={gate}" for gate in gates),
    ]


def _start_controllers(binaries: Binaries, processes: Processes, folder: Path, kubeconfig: Path) -> None:
    common = [f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0"]
    processes.start(
        "kube-controller-manager",
        [
            binaries.controller_manager,
            *common,
            f"--service-account-private-key-file={folder}/accounts.key",
            f"--root-ca-file={folder}/ca.pem",
        ],
    )
    processes.start("kube-scheduler", [binaries.scheduler, *common])
    processes.start(
        "kwok",
        [
            binaries.kwok,
            f"--kubeconfig={kubeconfig}",
            f"--config={binaries.kwok_stages}",
            "--manage-all-nodes",
            "--node-lease-duration-seconds=40",
        ],
    )


def _wait_for_api(api: Api, processes: Processes) -> None:
    def is_ready() -> bool:
        processes.check()
        try:
            return bool(api.request("GET", "/readyz") == "ok")
        except (ApiError, OSError):
            return False
        except Exception as error:
            if type(error).__module__.startswith("httpx"):
                return False
            raise

    wait_until(is_ready, "the API server is ready", _START_TIMEOUT_S)


def _all_ready(api: Api, processes: Processes) -> bool:
    processes.check()
    nodes = api.list("v1", "Node")
    has_account = api.find("v1", "ServiceAccount", "default", "default") is not None
    return has_account and len(nodes) == len(NODES) and all(is_condition(node, "Ready") for node in nodes)


def is_condition(item: Object, name: str) -> bool:
    """Return whether a condition in an object's status is true."""
    conditions = item.get("status", {}).get("conditions", [])
    return any(condition["type"] == name and condition["status"] == "True" for condition in conditions)


def install_crds(api: Api, wanted: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Create custom resource definitions that `make tools` has fetched; return the modules they come from.

    Raises ClusterError if some were not fetched.
    """
    installed = {}
    for source, names in wanted.items():
        folder = CACHE / "crds" / source
        files = sorted(folder.glob("*.yaml"))
        found = dict(pair for file in files for pair in crds_in(file.read_text("utf-8")))
        if missing := [name for name in names if name not in found]:
            raise ClusterError(f"{folder} lacks {', '.join(missing)}; `make tools` fetches it.")
        for name in names:
            _create_crd(api, name, found[name])
        marker = folder / ".module"
        installed[source] = marker.read_text().strip() if marker.is_file() else "unknown version"
    for name in (name for names in wanted.values() for name in names):
        wait_until(partial(_is_established, api, name), f"the CRD {name} is established", _START_TIMEOUT_S)
    return installed


def crds_in(text: str) -> list[tuple[str, str]]:
    """Return name and YAML of the custom resource definitions in a file. Parsing them would take a minute."""
    found = []
    for document in re.split(r"^---\s*$", text, flags=re.MULTILINE):
        name = re.search(r"^  name: (\S+)\s*$", document, re.MULTILINE)
        if name and re.search(r"^kind: CustomResourceDefinition\s*$", document, re.MULTILINE):
            found.append((name.group(1), document))
    return found


def _create_crd(api: Api, name: str, document: str) -> None:
    path = api.resource("apiextensions.k8s.io/v1", "CustomResourceDefinition").path()
    try:
        api.request("POST", path, document, media_type="application/yaml")
    except ApiError as error:
        if error.status != 409:
            raise ClusterError(f"The CRD {name} was rejected: {error}") from error


def _is_established(api: Api, name: str) -> bool:
    return is_condition(api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name), "Established")


def node(name: str, labels: Mapping[str, str] | None = None) -> Object:
    """Return a node: 16 cores and 64 GiB; those called gpu-… have eight GPUs, slices of one, and the usual taint."""
    capacity = {"cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "200Gi"}
    has_gpu = name.startswith("gpu")
    if has_gpu:
        capacity |= {"nvidia.com/gpu": "8", "nvidia.com/mig-1g.10gb": "7", "nvidia.com/mig-3g.40gb": "2"}
    zone = "zone-" + name[-1]
    basic = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": basic | {"topology.kubernetes.io/zone": zone} | dict(labels or {}),
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {"taints": [GPU_TAINT] if has_gpu else []},
        "status": {"capacity": capacity, "allocatable": capacity},
    }


def _create_basics(api: Api) -> None:
    """Create the nodes, and a storage class whose claims are bound to volumes that exist already."""
    for name in NODES:
        api.create(node(name))
        api.patch(node(name), {"status": node(name)["status"]}, subresource="status")
    api.create(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "manual",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "kubernetes.io/no-provisioner",
        }
    )


def persistent_volume(name: str, claim: Object) -> Object:
    """Return a volume that fits a claim, whatever storage class it names."""
    spec = claim["spec"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "storageClassName": spec.get("storageClassName", "manual"),
            "hostPath": {"path": f"/volumes/{name}"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim["metadata"]["namespace"],
                "name": claim["metadata"]["name"],
            },
        },
    }
