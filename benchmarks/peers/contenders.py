"""What is measured: the service of this checkout, and its peers, behind one interface."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers.environments import SERVERS, Environments, Unavailable, find_python, library_folder
from benchmarks.peers.peers import Peer
from benchmarks.peers.processes import ServerProcess, run_server
from benchmarks.peers.questions import Question, ReadinessCheck, our_question, peer_question
from benchmarks.peers.workload import Assignment, cores
from benchmarks.serving import newest_version
from loadtests.server import free_port, free_ports
from service.server import VERSION

ROOT = Path(__file__).parents[2]
OURS = "sevenfold"


class Contender(Protocol):
    """A server that can be started and asked."""

    @property
    def name(self) -> str:
        """What the results call it."""

    @property
    def title(self) -> str:
        """What the table calls it."""

    @property
    def settings(self) -> str:
        """What was chosen for it, for the reader."""

    def version(self) -> str:
        """Return its version, installing it if necessary. Raises Unavailable."""

    def question(self, models: Path, model: str) -> Question:
        """Return the request to it."""

    def start(self, models: Path, model: str, expected: Any) -> AbstractContextManager[ServerProcess]:
        """Return a context manager that starts it with one model and yields a ServerProcess. Raises Unavailable.

        Unless `expected` is None, an answer that differs from it raises Unavailable.
        """


@dataclass(frozen=True)
class Service:
    """The service of this checkout, with settings of its command line.

    Attributes:
        flags: the settings that differ from the defaults.
    """

    name: str = OURS
    title: str = "**Sevenfold**"
    flags: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def settings(self) -> str:
        """The flags."""
        return " ".join(self.flags) or "defaults"

    def version(self) -> str:
        """Return the version of this checkout. Raises Unavailable if it does not know a flag."""
        for flag in self.flags:
            if flag.startswith("--") and not has_setting(flag.partition("=")[0]):
                raise Unavailable(f"The service of this checkout has no setting {flag.partition('=')[0]}.")
        return VERSION

    def question(self, models: Path, model: str) -> Question:
        """Return the request to it."""
        return our_question(models, model)

    @contextmanager
    def start(self, models: Path, model: str, expected: Any) -> Iterator[ServerProcess]:
        """Start it with a folder that holds one model."""
        port = free_port()
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / model).symlink_to((models / model).resolve(), target_is_directory=True)
            command = [sys.executable, "-m", "service", "--models", folder, "--port", str(port)]
            command += ["--device", self.device, *self.flags]
            check = ReadinessCheck(self.question(models, model), expected)
            with run_server(command, {}, port, check, cwd=ROOT) as server:
                yield server


@dataclass(frozen=True)
class PeerServer:
    """A peer in its environment.

    Attributes:
        peer: which one.
        environments: where its packages are.
        device: `cpu` or `cuda`.
    """

    peer: Peer
    environments: Environments = field(repr=False)
    device: str = "cpu"

    @property
    def name(self) -> str:
        """The peer's name."""
        return self.peer.name

    @property
    def title(self) -> str:
        """The peer's title."""
        return self.peer.title

    @property
    def settings(self) -> str:
        """What was chosen for it."""
        return self.peer.settings

    def version(self) -> str:
        """Return the version of its package, installing it if necessary. Raises Unavailable."""
        return self.environments.version(self.peer)

    def question(self, models: Path, model: str) -> Question:
        """Return the request to it."""
        return peer_question(models, model, self.peer.path, self.peer.protocol)

    @contextmanager
    def start(self, models: Path, model: str, expected: Any) -> Iterator[ServerProcess]:
        """Start its `server.py`."""
        python, (port, *_) = self.environments.python(self.peer), free_ports(1)
        processes = self.peer.processes or (1 if self.device == "cuda" else cores())
        assignment = Assignment(newest_version(models / model).resolve(), port, processes, self.device)
        variables = assignment.to_environment() | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        if self.peer.needs_libpython:
            variables["LD_LIBRARY_PATH"] = library_folder(find_python(self.peer))
        check = ReadinessCheck(self.question(models, model), expected)
        folder = SERVERS / self.peer.folder
        with run_server([str(python), "server.py"], variables, port, check, cwd=folder) as server:
            yield server


@cache
def _help() -> str:
    ended = subprocess.run([sys.executable, "-m", "service", "--help"], capture_output=True, text=True, check=True)
    return ended.stdout


def has_setting(flag: str) -> bool:
    """Return whether the service of this checkout has a setting, `--processes` for example."""
    return re.search(rf"{re.escape(flag)}\b(?!-)", _help()) is not None


def our_services(flags: tuple[str, ...], device: str) -> list[Service]:
    """Return the service with these flags; with one process and with one per core where their number can be set."""
    number = "--processes"
    if device != "cpu" or number in flags or not has_setting(number):
        return [Service(flags=flags, device=device)]
    several = (number, str(cores()), *flags)
    return [
        Service(flags=(number, "1", *flags)),
        Service(f"{OURS}_{cores()}", f"**Sevenfold × {cores()}**", several),
    ]


def versions_of(contenders: Mapping[str, Contender]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the version of each contender, and the reason of each that is unavailable."""
    versions, reasons = {}, {}
    for name, contender in contenders.items():
        try:
            versions[name] = contender.version()
        except Unavailable as error:
            reasons[name] = str(error)
    return versions, reasons
