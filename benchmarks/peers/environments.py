"""A virtual environment for each peer, outside the repository, with exactly the packages of its requirements.txt."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.peers import Peer

SERVERS = Path(__file__).parent / "servers"
_FOR_CUDA = Path(__file__).parents[2] / "requirements" / "serve-gpu.txt"
_INSTALL_S = 1800.0
_QUERY_S = 60.0
_STAMP = "installed"
_MAX_REASON = 300
"""Characters of what an installer printed that go into the results."""


class Unavailable(RuntimeError):
    """A peer cannot be measured on this machine; the message says why."""


def default_cache() -> Path:
    """Return the folder of the environments: `$XDG_CACHE_HOME/sevenfold/peers`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sevenfold" / "peers"


@dataclass(frozen=True)
class Environments:
    """Makes and finds environments.

    Attributes:
        cache: the folder that holds one environment for each folder of `servers`.
        servers: the folder with `NAME/requirements.txt`.
        device: `cpu`, or `cuda` to replace ONNX Runtime by the build for CUDA that the service uses.
    """

    cache: Path
    servers: Path = SERVERS
    device: str = "cpu"

    def python(self, peer: Peer) -> Path:
        """Return the interpreter of the peer's environment, which is made if it is missing or out of date.

        Raises Unavailable if there is no suitable Python, or the packages cannot be installed.
        """
        folder = self.cache / (peer.folder if self.device == "cpu" else f"{peer.folder}-{self.device}")
        python, requirements = folder / "bin" / "python", self.servers / peer.folder / "requirements.txt"
        base, for_cuda = find_python(peer), "" if self.device == "cpu" else cuda_requirements(_FOR_CUDA.read_text())
        stamp = hashlib.sha256(f"{requirements.read_text()}{for_cuda}{base}".encode()).hexdigest()
        if _read(folder / _STAMP) == stamp and python.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        print(f"Installing {peer.title} into {folder} ...", file=sys.stderr, flush=True)
        _run([str(base), "-m", "venv", "--without-pip", str(folder)], _QUERY_S, "The environment cannot be made")
        _run([*_installer(python), "--require-hashes", "-r", str(requirements)], _INSTALL_S, "It cannot be installed")
        if for_cuda:
            self._install_for_cuda(folder, for_cuda)
        (folder / _STAMP).write_text(stamp, "utf-8")  # Last, so that an interrupted installation is repeated.
        return python

    def _install_for_cuda(self, folder: Path, requirements: str) -> None:
        """Replace ONNX Runtime: both builds install into the same folder."""
        python, file = folder / "bin" / "python", folder / "cuda.txt"
        file.write_text(requirements, "utf-8")
        if uv := _uv():
            remove = [uv, "pip", "uninstall", "--quiet", "--python", str(python), "onnxruntime"]
        else:
            remove = [sys.executable, "-m", "pip", "--python", str(python), "uninstall", "--quiet", "-y", "onnxruntime"]
        _run(remove, _QUERY_S, "ONNX Runtime cannot be replaced")
        install = [*_installer(python), "--no-deps", "--require-hashes", "-r", str(file)]
        _run(install, _INSTALL_S, "ONNX Runtime for CUDA cannot be installed")

    def version(self, peer: Peer) -> str:
        """Return the version of the peer's package in its environment. Raises Unavailable."""
        query = f"import importlib.metadata as m; print(m.version({peer.package!r}))"
        return _run([str(self.python(peer)), "-c", query], _QUERY_S, "Its version cannot be read").strip()


def cuda_requirements(requirements: str) -> str:
    """Return the lines of pinned requirements that are about ONNX Runtime for CUDA and the libraries of CUDA."""
    entries = re.split(r"^(?=[a-z0-9])", requirements, flags=re.MULTILINE)
    return "".join(entry for entry in entries if entry.startswith(("onnxruntime-gpu", "nvidia-", "cuda-")))


def find_python(peer: Peer) -> Path:
    """Return an interpreter for the peer: this one, or one of the version that it needs. Raises Unavailable."""
    if peer.python is None:
        return Path(sys.executable).resolve()
    for candidate in _candidates(peer.python):
        if (found := _resolve(candidate)) and (not peer.needs_libpython or _has_libpython(found)):
            return found
    shared = " with a shared libpython" if peer.needs_libpython else ""
    raise Unavailable(f"It needs Python {peer.python}{shared}, which was not found.")


def _candidates(version: str) -> list[list[str]]:
    """Return commands that are, or print the path of, a Python of this version: on the path, of pyenv, or of uv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    builds = [f"python{version}", *map(str, sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True))]
    found = [[build, "-c", "import sys; print(sys.executable)"] for build in builds]
    return [*found, *([[uv, "python", "find", "--no-python-downloads", version]] if (uv := _uv()) else [])]


def _resolve(command: list[str]) -> Path | None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_QUERY_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Path(ended.stdout.strip()).resolve() if ended.returncode == 0 and ended.stdout.strip() else None


def _has_libpython(python: Path) -> bool:
    query = "import sysconfig; print(sysconfig.get_config_var('Py_ENABLE_SHARED'))"
    ended = subprocess.run([python, "-c", query], capture_output=True, text=True, check=False, timeout=_QUERY_S)
    return ended.stdout.strip() == "1"


def library_folder(python: Path) -> str:
    """Return the folder of the interpreter's shared libraries, for programs that load libpython."""
    query = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    return _run([str(python), "-c", query], _QUERY_S, "Python does not say where its libraries are").strip()


def _uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _installer(python: Path) -> list[str]:
    """Return the command that installs packages: uv, which `make` has installed, or else this interpreter's pip."""
    if uv := _uv():
        return [uv, "pip", "install", "--quiet", "--python", str(python)]
    return [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]


def _run(command: list[str], seconds: float, what: str) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{what}: it takes more than {seconds:g} s.") from None
    if ended.returncode:
        lines = " ".join((ended.stderr or ended.stdout).split())
        raise Unavailable(f"{what}: {lines[-_MAX_REASON:] or f'exit code {ended.returncode}'}")
    return ended.stdout


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
