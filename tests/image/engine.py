"""Build images and run containers with Docker, Podman or Buildah: what `make image` and `make image-test` use.

Needs nothing but Python's standard library, so that `make image` installs nothing.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.server import free_port

ROOT = Path(__file__).parents[2]
USER = 10001
_RUN_S = 120
LABELS = {
    name: f"org.opencontainers.image.{name}"
    for name in ("version", "revision", "created", "source", "base.name", "base.digest")
}
"""The labels of an image that are not in the Dockerfile, by their short names."""
_PORT = 8080


class EngineError(RuntimeError):
    """An image could not be built or run; the message says what to do."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended in a container."""

    code: int
    output: str


def find_engine(name: str = "") -> "Engine":
    """Return Docker, else Podman, else Buildah, or the one that is named. Raises EngineError if it is not usable."""
    for engine in (ContainerTool("docker"), ContainerTool("podman"), Buildah()):
        if name in ("", engine.name) and engine.is_usable():
            return engine
    raise EngineError(
        f"{name or 'Neither Docker, nor Podman, nor Buildah'} is not usable here. Install one of them; on Debian: "
        "apt-get install buildah (as root)."
    )


class Engine:
    """A program that builds images. It runs containers as Kubernetes does under "restricted".

    That is: as user 10001, without capabilities, with a root that cannot be written to and an empty /tmp.
    """

    name = ""
    build_command: Sequence[str] = ()

    def is_usable(self) -> bool:
        """Return whether the program is installed and works."""
        raise NotImplementedError

    def build(
        self,
        target: str,
        tag: str = "",
        *,
        arguments: Mapping[str, str],
        labels: Mapping[str, str] | None = None,
        output: Path | None = None,
        cache: bool = True,
    ) -> None:
        """Build a target of the Dockerfile, as an image named `tag` or as files in the folder `output`.

        Raises EngineError.
        """
        command = [*self._build_command(arguments), "--file", "Dockerfile", "--target", target]
        command += ["--tag", tag] if tag else []
        command += ["--output", f"type=local,dest={output}"] if output else []
        command += [] if cache else ["--no-cache"]
        for name, value in arguments.items():
            command += ["--build-arg", f"{name}={value}"]
        described = [f"--label={LABELS[name]}={value}" for name, value in (labels or {}).items()]
        command += described
        if certificates := _own_certificates():
            command += ["--secret", f"id=ca,src={certificates}"]
        command.append(".")
        with subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, env=self._environment()) as process:
            if process.wait() != 0:
                raise EngineError(f"The image was not built: {' '.join(command)}")
        if tag and described:
            self._describe(tag, described, arguments)

    def _describe(self, tag: str, labels: Sequence[str], arguments: Mapping[str, str]) -> None:
        """Give an image its labels, if building it has not: they are options of the form --label=NAME=TEXT."""

    def _build_command(self, arguments: Mapping[str, str]) -> list[str]:
        return list(self.build_command)

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def inspect(self, tag: str) -> dict[str, Any]:
        """Return the image's configuration: User, Entrypoint, Env, Labels, …"""
        raise NotImplementedError

    def size(self, tag: str) -> int:
        """Return the bytes of the image on disk."""
        raise NotImplementedError

    def layers(self, tag: str) -> list[str]:
        """Return the digests of the image's layers, lowest first."""
        raise NotImplementedError

    def run(self, tag: str, command: Sequence[str], *, models: Path | None = None) -> Ended:
        """Run a command in a new container, to its end."""
        raise NotImplementedError

    @contextmanager
    def serve(self, tag: str, *, models: Path | None = None) -> Iterator["Server"]:
        """Run the image's own command; yield the server. The container is removed at the end."""
        raise NotImplementedError
        yield


class Server:
    """The server of a running container."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    @property
    def address(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, str]:
        """Return status and text of a response. Raises OSError if there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def wait(self, path: str, expected: str, timeout_s: float = 120.0) -> None:
        """Wait until the text at this path contains `expected`. Raises EngineError if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if expected in self.get(path)[1]:
                    return
            if self.process.poll() is not None:
                raise EngineError(f"The server has ended with exit code {self.process.returncode}.")
            time.sleep(0.1)
        raise EngineError(f"{path} did not answer {expected!r} within {timeout_s:g} s.")

    def terminate(self) -> None:
        """Send SIGTERM to the server."""
        raise NotImplementedError

    def exit_code(self) -> int:
        """Wait for the end of the server and return its exit code."""
        return self.process.wait(_RUN_S)

    def execute(self, command: Sequence[str]) -> Ended:
        """Run a command inside the container."""
        raise NotImplementedError


class ContainerTool(Engine):
    """Docker or Podman."""

    def __init__(self, name: str) -> None:
        self.name = name
        formats = ["--format", "docker"] if name == "podman" else []  # The format that has a HEALTHCHECK.
        self.build_command = [name, "build", *formats]

    def is_usable(self) -> bool:
        """Return whether its daemon, if it needs one, answers."""
        if shutil.which(self.name) is None:
            return False
        return subprocess.run([self.name, "info"], capture_output=True, check=False, timeout=60).returncode == 0

    def _environment(self) -> dict[str, str]:
        return os.environ | {"DOCKER_BUILDKIT": "1"}

    def _inspect(self, tag: str) -> dict[str, Any]:
        output = subprocess.run([self.name, "image", "inspect", tag], capture_output=True, text=True, check=True).stdout
        described: dict[str, Any] = json.loads(output)[0]
        return described

    def inspect(self, tag: str) -> dict[str, Any]:
        """Return the image's configuration."""
        described = self._inspect(tag)
        config: dict[str, Any] = described["Config"]
        return config | {"Healthcheck": config.get("Healthcheck") or described.get("HealthCheck")}

    def size(self, tag: str) -> int:
        """Return the bytes of the image on disk."""
        return int(self._inspect(tag)["Size"])

    def layers(self, tag: str) -> list[str]:
        """Return the digests of the image's layers."""
        return list(self._inspect(tag)["RootFS"]["Layers"])

    def _flags(self, models: Path | None) -> list[str]:
        flags = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]
        return flags + ([f"--volume={models}:/models:ro"] if models else [])

    def run(self, tag: str, command: Sequence[str], *, models: Path | None = None) -> Ended:
        """Run a command in a new container, on the host's network, to its end."""
        head = [self.name, "run", "--rm", "--network=host", f"--entrypoint={command[0]}", *self._flags(models), tag]
        return _run([*head, *command[1:]])

    @contextmanager
    def serve(self, tag: str, *, models: Path | None = None) -> Iterator[Server]:
        """Run the image's own command."""
        name = f"sevenfold-image-test-{os.getpid()}"
        publish = f"--publish=127.0.0.1::{_PORT}"
        command = [self.name, "run", f"--name={name}", publish, *self._flags(models), tag]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True) as process:
            try:
                yield _ToolServer(process, self.name, name, self._published_port(name, process))
            finally:
                subprocess.run([self.name, "rm", "--force", name], capture_output=True, check=False)

    def _published_port(self, name: str, process: subprocess.Popen[str]) -> int:
        for _ in range(300):
            ended = _run([self.name, "port", name, f"{_PORT}/tcp"])
            if ended.code == 0 and ended.output.strip():
                return int(ended.output.split()[0].rpartition(":")[2])
            if process.poll() is not None:
                break
            time.sleep(0.1)
        raise EngineError(f"The container {name} has not started.")


class _ToolServer(Server):
    def __init__(self, process: subprocess.Popen[str], tool: str, name: str, port: int) -> None:
        super().__init__(process, port)
        self._tool, self._name = tool, name

    def terminate(self) -> None:
        subprocess.run([self._tool, "kill", "--signal=TERM", self._name], capture_output=True, check=True)

    def execute(self, command: Sequence[str]) -> Ended:
        return _run([self._tool, "exec", self._name, *command])


class Buildah(Engine):
    """Buildah, where there is no engine that runs containers: `enter.py` does that, with the kernel's own means."""

    name = "buildah"
    build_command: Sequence[str] = (
        "buildah",
        "build",
        "--isolation",
        "chroot",
        "--format",
        "docker",
        "--layers",
        "--pull-never",
    )

    def is_usable(self) -> bool:
        """Return whether it is installed, and may mount images."""
        return shutil.which("buildah") is not None and os.geteuid() == 0

    def _build_command(self, arguments: Mapping[str, str]) -> list[str]:
        """Return the command. Of SOURCE_DATE_EPOCH it makes the times of all files, so that two builds are equal."""
        # Images that are only on this machine, such as the one of make_base_image.sh, are not looked for elsewhere.
        is_local = arguments.get("PYTHON_IMAGE", "").startswith("localhost/")
        return [*(word for word in self.build_command if is_local or word != "--pull-never"), *_time_flag(arguments)]

    def _describe(self, tag: str, labels: Sequence[str], arguments: Mapping[str, str]) -> None:
        # A build that is wholly in the cache keeps the labels of the build before; this costs a layer without files.
        container = _checked(["buildah", "from", "--pull-never", tag]).splitlines()[-1]
        try:
            _checked(["buildah", "config", *labels, container])
            _checked(["buildah", "commit", "--quiet", "--format=docker", *_time_flag(arguments), container, tag])
        finally:
            _run(["buildah", "rm", container])

    def _inspect(self, tag: str) -> dict[str, Any]:
        output = _run(["buildah", "inspect", "--type", "image", tag])
        if output.code:
            raise EngineError(output.output.strip())
        described: dict[str, Any] = json.loads(output.output)
        return described

    def inspect(self, tag: str) -> dict[str, Any]:
        """Return the image's configuration."""
        config: dict[str, Any] = self._inspect(tag)["Docker"]["config"]
        return config

    def size(self, tag: str) -> int:
        """Return the bytes of the image's files, as they lie on disk."""
        with self._mounted(tag) as root:
            return int(_run(["du", "--summarize", "--block-size=1", "--one-file-system", str(root)]).output.split()[0])

    def layers(self, tag: str) -> list[str]:
        """Return the digests of the image's layers."""
        return list(self._inspect(tag)["Docker"]["rootfs"]["diff_ids"])

    @contextmanager
    def _mounted(self, tag: str) -> Iterator[Path]:
        container = _run(["buildah", "from", "--pull-never", tag]).output.strip().splitlines()[-1]
        try:
            yield Path(_run(["buildah", "mount", container]).output.strip())
        finally:
            _run(["buildah", "rm", container])

    def _command(
        self, root: Path, tag: str, command: Sequence[str], models: Path | None, environment: Mapping[str, str]
    ) -> list[str]:
        config = self.inspect(tag)
        variables = dict(text.split("=", 1) for text in config["Env"]) | dict(environment)
        task = {
            "root": str(root),
            "models": str(models) if models else "",
            "environment": variables,
            "folder": config["WorkingDir"],
            "user": config["User"],
            "command": list(command) or list(config["Entrypoint"]),
        }
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        return [*unshare, sys.executable, str(Path(__file__).with_name("enter.py")), json.dumps(task)]

    def run(self, tag: str, command: Sequence[str], *, models: Path | None = None) -> Ended:
        """Run a command in a new container, on the host's network, to its end."""
        with self._mounted(tag) as root:
            return _run(self._command(root, tag, command, models, {}))

    @contextmanager
    def serve(self, tag: str, *, models: Path | None = None) -> Iterator[Server]:
        """Run the image's own command, on a free port of the host's network."""
        port = free_port()
        with self._mounted(tag) as root:
            command = self._command(root, tag, [], models, {"SEVENFOLD_PORT": str(port)})
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True) as process:
                server = _BuildahServer(process, port)
                try:
                    yield server
                finally:
                    server.kill()


class _BuildahServer(Server):
    @property
    def _pid(self) -> int:
        """The process that is number 1 inside the container."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])

    def terminate(self) -> None:
        os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        """End all processes of the container. `--kill-child` does not: changing the user makes the kernel forget it."""
        with suppress(OSError, IndexError):  # It has ended by itself.
            os.kill(self._pid, signal.SIGKILL)
        self.process.kill()

    def execute(self, command: Sequence[str]) -> Ended:
        pid = self._pid
        variables = Path(f"/proc/{pid}/environ").read_text().rstrip("\0").split("\0")
        enter = ["nsenter", f"--target={pid}", "--mount", "--pid", "--root", "--wd"]
        path = next(text for text in variables if text.startswith("PATH="))
        python = ["env", "-i", *variables, "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        return _run([*enter, *python, "--bounding-set=-all", "--no-new-privs", "env", path, *command])


def _time_flag(arguments: Mapping[str, str]) -> list[str]:
    return [f"--timestamp={arguments['SOURCE_DATE_EPOCH']}"] if "SOURCE_DATE_EPOCH" in arguments else []


def _checked(command: Sequence[str]) -> str:
    """Run a command and return its output. Raises EngineError if it fails."""
    ended = _run(command)
    if ended.code:
        raise EngineError(f"{' '.join(command)}: {ended.output.strip()}")
    return ended.output.strip()


def _run(command: Sequence[str]) -> Ended:
    ended = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=_RUN_S
    )
    return Ended(ended.returncode, ended.stdout)


def _own_certificates() -> str:
    """Return a file of certificates that the builder needs: that of a network which signs TLS itself."""
    return next((os.environ[name] for name in ("SSL_CERT_FILE", "PIP_CERT", "CA_BUNDLE") if os.environ.get(name)), "")
