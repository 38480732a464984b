"""The programs of a Kubernetes control plane: where they are, and `python -m tests.cluster tools`, which builds them.

Kubernetes publishes its programs as images and archives; its source is also a Go module, so that all they need is Go
and its module proxy. Everything is pinned, and the sources are compared with checksums. Built programs are kept in
~/.cache/sevenfold/kubernetes/VERSION. Building one version takes about six minutes on two cores and 4 GB of memory.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.external_tools import CACHE, find_tool

VERSIONS: Mapping[str, str] = {
    "1.33.4": "h1:T1d5FLUYm3/KyUeV7YJhKTR980zHCHb7K2xhCSo3lE8=",
    "1.37.2": "h1:A2VDEiObzkYqFTKhSsn0ZEb0RlLEXpHWj93gi2HqEwE=",
}
"""Versions of Kubernetes that are tested, and the checksums of their modules, as in a go.sum file."""
DEFAULT_VERSION = "1.33.4"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
_KWOK = ("0.8.0", "h1:OTIOTwgROqPMovcTwxICx2eYQ4AwLpSx5EpjbDKF4SQ=")
_KWOK_STAGES = ("node/fast", "node/heartbeat-with-lease", "pod/fast")
"""What kwok pretends: nodes that stay alive, pods that run and are ready at once, and jobs that succeed."""
_ETCD = ("3.6.5", "go.etcd.io/etcd/server/v3/etcdmain")
_BUILD_TIMEOUT_S = 3600
_HOW = "build it with `make tools` and `python -m tests.cluster tools`, about ten minutes on two cores"


class MissingTool(Exception):
    """A program is not on this machine, or cannot be built here."""


@dataclass(frozen=True)
class Binaries:
    """The programs of a control plane of one version."""

    version: str
    etcd: Path
    kubectl: Path
    kwok: Path
    kwok_stages: Path
    apiserver: Path
    controller_manager: Path
    scheduler: Path


def folder(version: str) -> Path:
    """Return the folder of the programs of one version of Kubernetes."""
    return CACHE / "kubernetes" / f"v{version}"


def find_binaries(version: str) -> Binaries:
    """Return the programs of a control plane. Raises MissingTool, with all that is missing and how to get it."""
    common = {name: CACHE / "kubernetes" / name for name in ("etcd", "kwok", "kwok-stages.yaml")}
    places = common | {name: folder(version) / name for name in PROGRAMS}
    present = {name: path for name, path in places.items() if path.exists()}
    for name in ("etcd", "kubectl"):
        if name not in present and (found := find_tool(name)):
            present[name] = found
    if missing := sorted(places.keys() - present.keys()):
        raise MissingTool(f"Not on this machine: {', '.join(missing)} (Kubernetes {version}); {_HOW}.")
    return Binaries(
        version=version,
        etcd=present["etcd"],
        kubectl=present["kubectl"],
        kwok=present["kwok"],
        kwok_stages=present["kwok-stages.yaml"],
        apiserver=present["kube-apiserver"],
        controller_manager=present["kube-controller-manager"],
        scheduler=present["kube-scheduler"],
    )


def find_helm(major: int) -> Path:
    """Return the path of Helm 3 or 4. Raises MissingTool."""
    if found := find_tool(f"helm{major}"):
        return found
    raise MissingTool(f"Helm {major} is not on this machine; `make tools` fetches it.")


def staging_edits(module: Mapping[str, object], version: str) -> list[str]:
    """Return the `go mod edit` flags with which Kubernetes can be built from its published module.

    Its go.mod replaces the modules that are developed with it by folders, which the published module does not contain.
    Each of them is published too, as v0.X.Y for Kubernetes 1.X.Y.

    Args:
        module: the output of `go mod edit -json`.
        version: the version of Kubernetes, as 1.X.Y.
    """
    required = module.get("Require") or []
    replaced = module.get("Replace") or []
    assert isinstance(required, list)
    assert isinstance(replaced, list)
    published = "v0." + version.removeprefix("1.")
    edits = [f"-dropreplace={entry['Old']['Path']}" for entry in replaced]
    return edits + [f"-require={entry['Path']}@{published}" for entry in required if entry["Version"] == "v0.0.0"]


def version_flags(version: str) -> str:
    """Return linker flags with the version: without it, the programs say v0.0.0, and Helm refuses charts."""
    major, minor, _ = version.split(".")
    variables = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return "-s -w " + " ".join(f"-X k8s.io/component-base/version.{name}={text}" for name, text in variables.items())


def build(versions: Sequence[str]) -> None:
    """Build what is missing. Raises MissingTool if Go is missing or a build fails."""
    for version in versions:
        if all((folder(version) / name).exists() for name in PROGRAMS):
            print(f"Kubernetes {version}: present", flush=True)
        else:
            print(f"Kubernetes {version}: building, about six minutes on two cores …", flush=True)
            _build_kubernetes(version)
            print(f"Kubernetes {version}: built into {folder(version)}", flush=True)
    steps = {"kwok": (_build_kwok, ("kwok", "kwok-stages.yaml")), "etcd": (_build_etcd, ("etcd",))}
    for name, (make, files) in steps.items():
        if all((CACHE / "kubernetes" / file).exists() for file in files):
            print(f"{name}: present", flush=True)
            continue
        print(f"{name}: building …", flush=True)
        make()
        print(f"{name}: built", flush=True)


def _build_kubernetes(version: str) -> None:
    if version not in VERSIONS:
        raise MissingTool(f"Kubernetes {version} is not pinned; choose one of {', '.join(VERSIONS)}.")
    with _workspace() as space:
        module = json.loads(_go(["mod", "download", "-json", f"k8s.io/kubernetes@v{version}"], space))
        if module["Sum"] != VERSIONS[version]:
            raise MissingTool(f"k8s.io/kubernetes {version} has checksum {module['Sum']}, not {VERSIONS[version]}.")
        source = space / "kubernetes"
        shutil.copytree(module["Dir"], source, copy_function=shutil.copyfile)
        for path in source.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        source.chmod(0o755)
        edits = staging_edits(json.loads(_go(["mod", "edit", "-json"], source)), version)
        _go(["mod", "edit", *edits], source)
        packages = [f"./cmd/{name}" for name in PROGRAMS if not (folder(version) / name).exists()]
        _go(["build", "-p", "2", "-ldflags", version_flags(version), "-o", f"{space}/bin/", *packages], source)
        _keep(space / "bin", folder(version))


def _build_kwok() -> None:
    version, checksum = _KWOK
    with _workspace() as space:
        module = json.loads(_go(["mod", "download", "-json", f"sigs.k8s.io/kwok@v{version}"], space))
        if module["Sum"] != checksum:
            raise MissingTool(f"sigs.k8s.io/kwok {version} has checksum {module['Sum']}, not {checksum}.")
        _go(["install", f"sigs.k8s.io/kwok/cmd/kwok@v{version}"], space, GOBIN=str(space / "bin"))
        stages = [
            file.read_text("utf-8")
            for name in _KWOK_STAGES
            for file in sorted(Path(module["Dir"], "kustomize", "stage", name).glob("*.yaml"))
            if file.name != "kustomization.yaml"
        ]
        (space / "bin" / "kwok-stages.yaml").write_text("\n---\n".join(stages), "utf-8")
        _keep(space / "bin", CACHE / "kubernetes")


def _build_etcd() -> None:
    """Build etcd from a module of our own: its main module replaces others, so that `go install` refuses it."""
    version, package = _ETCD
    with _workspace() as space:
        (space / "main.go").write_text(
            f'package main\n\nimport (\n\t"os"\n\n\t"{package}"\n)\n\nfunc main() {{ etcdmain.Main(os.Args) }}\n'
        )
        _go(["mod", "init", "etcd"], space)
        _go(["get", f"{package.rpartition('/')[0]}@v{version}"], space)
        _go(["mod", "tidy"], space)
        _go(["build", "-p", "2", "-ldflags", "-s -w", "-o", f"{space}/bin/etcd", "."], space)
        _keep(space / "bin", CACHE / "kubernetes")


def _keep(built: Path, target: Path) -> None:
    """Move programs into the cache, each as a whole: another checkout may be running the same ones."""
    target.mkdir(parents=True, exist_ok=True)
    for program in built.iterdir():
        partial = target / f".{program.name}.{os.getpid()}.partial"
        shutil.copy(program, partial)
        partial.replace(target / program.name)


@contextmanager
def _workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sevenfold-build-") as path:
        yield Path(path)


def _go(arguments: Sequence[str], cwd: Path, **environment: str) -> str:
    go = find_tool("go") or CACHE / "go" / "bin" / "go"
    if not os.access(go, os.X_OK):
        raise MissingTool("Go is not on this machine; `make tools` installs it, or put Go 1.26 or newer on the PATH.")
    # GOSUMDB: the checksums above are compared instead. Dependencies are in the go.sum of Kubernetes, except those that
    # are developed with it.
    settings = {"GOWORK": "off", "GOFLAGS": "-mod=mod -buildvcs=false", "GOSUMDB": "off", "CGO_ENABLED": "0"}
    done = subprocess.run(
        [go, *arguments],
        cwd=cwd,
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-8:]
        raise MissingTool(f"`go {' '.join(arguments[:2])}` failed:\n" + "\n".join(lines))
    return done.stdout
