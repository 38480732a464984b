"""`make image-test`: build the image that serves on a CPU, run it as Kubernetes would, and check what it promises.

    python -m tests.image [--python-image IMAGE] [--engine buildah]

Each check is a line; the exit status is 1 if one fails. Where no registry of images can be reached, the base image
comes from make_base_image.sh.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.image.build import PYTHON_IMAGE, build_arguments, image_labels, write_sbom
from tests.image.engine import ROOT, USER, Engine, EngineError, find_engine

IMAGE = "localhost/sevenfold-test:cpu"
MAX_BYTES = 450_000_000
MAX_APP_BYTES = 5_000_000
_ROW = json.dumps({"text": "A film that I would watch again tomorrow."}).encode()
_FIRST_BYTES = 10
_MODEL = "imdb"
_COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "make", "ld", "as", "rustc", "go", "uv", "git", "curl", "wget")
_STATUS = "import pathlib; print(pathlib.Path('/proc/self/status').read_text())"
_WRITE = """
import errno, pathlib, sys
for folder in ("/", "/app", "/usr", "/opt/venv", "/models", "/etc", "/var/tmp"):
    try:
        pathlib.Path(folder, "written").write_text("x")
    except OSError as error:
        if error.errno == errno.EROFS:
            continue
        sys.exit(f"{folder}: {error}")
    sys.exit(f"{folder} can be written to")
pathlib.Path("/tmp/written").write_text("x")
"""


@dataclass
class Checks:
    """The checks of an image. Each returns what it found, or raises AssertionError with what is wrong."""

    engine: Engine
    arguments: dict[str, str]
    labels: dict[str, str]

    def hadolint(self) -> str:
        """The Dockerfile is free of complaints."""
        ended = subprocess.run(
            [Path(sys.executable).with_name("hadolint"), "Dockerfile"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        _expect(ended.returncode == 0, ended.stdout)
        return "no complaint"

    def size(self) -> str:
        """The image has at most 450 MB, and its own code a few."""
        size = self.engine.size(IMAGE)
        app = int(self._output("du", "--summarize", "--block-size=1", "/app").split()[0])
        _expect(size <= MAX_BYTES, f"{size / 1e6:.0f} MB are more than {MAX_BYTES / 1e6:.0f}")
        _expect(app <= MAX_APP_BYTES, f"the layer of the code has {app / 1e6:.1f} MB")
        return f"{size / 1e6:.0f} MB, of which {app / 1e6:.1f} are the layer of the code"

    def configuration(self) -> str:
        """The image says who runs it, how it ends, and what it is."""
        config = self.engine.inspect(IMAGE)
        _expect(config["User"] == f"{USER}:{USER}", f"user {config['User']!r}")
        _expect(config["Entrypoint"] == ["python", "-m", "service"], f"entry point {config['Entrypoint']}")
        _expect(config["StopSignal"] in ("SIGTERM", "15"), f"stop signal {config['StopSignal']!r}")
        _expect(bool(config["Healthcheck"]), "no health check")
        _expect(set(config["ExposedPorts"]) == {"8080/tcp", "8082/tcp"}, f"ports {config['ExposedPorts']}")
        labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
        wrong = {name: labels.get(name) for name, text in self.labels.items() if labels.get(name) != text}
        _expect(not wrong, f"labels {wrong}")
        revision = labels.get("revision", "unknown")
        return f"user {config['User']}, version {labels['version']}, revision {revision[:12]}, {len(labels)} labels"

    def contents(self) -> str:
        """There is no torch, no compiler, and nothing of the tests and of training."""
        ended = self.engine.run(IMAGE, ["python", "-c", "import torch"])
        _expect(ended.code == 1 and "No module named 'torch'" in ended.output, f"import torch: {ended.output}")
        find = f"import shutil; print(*[name for name in {_COMPILERS!r} if shutil.which(name)])"
        found = self._output("python", "-c", find).split()
        _expect(not found, f"the image has {', '.join(found)}")
        folders = sorted(self._output("ls", "/app").split())
        _expect(folders == ["LICENSE", "service", "tasks"], f"/app has {folders}")
        return f"no torch, none of {len(_COMPILERS)} tools; /app: {' '.join(folders)}"

    def restrictions(self) -> str:
        """The user, the capabilities and the root are what Pod Security "restricted" asks for, and are enforced."""
        fields = dict(
            line.split(":\t", 1) for line in self._output("python", "-c", _STATUS).splitlines() if ":\t" in line
        )
        _expect(set(fields["Uid"].split() + fields["Gid"].split()) == {str(USER)}, f"uid {fields['Uid']}")
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            _expect(int(fields[name], 16) == 0, f"{name} is {fields[name]}")
        _expect(fields["NoNewPrivs"].strip() == "1", "new privileges are possible")
        written = self.engine.run(IMAGE, ["python", "-c", _WRITE])
        _expect(written.code == 0, written.output)
        return f"uid {USER}, no capability in any set, no new privileges, root read-only, /tmp writable"

    def predictions(self) -> str:
        """The server becomes ready with the models on a volume, and every model answers its example."""
        started = time.monotonic()
        with self.engine.serve(IMAGE, models=ROOT / "models") as server:
            server.wait("/health/ready", '"ready":true')
            seconds = time.monotonic() - started
            ended = self.engine.run(IMAGE, ["python", "-m", "service", "smoke", "--url", server.address])
            _expect(ended.code == 0, ended.output)
            health = server.execute(["python", "-m", "service.process.health_check"])
            _expect(health.code == 0, f"health check: {health.output}")
            return f"ready after {seconds:.1f} s; {ended.output.strip().splitlines()[-1]}; the health check agrees"

    def draining(self) -> str:
        """At SIGTERM, a request that has been accepted is answered, and the exit code is 0."""
        with self.engine.serve(IMAGE, models=ROOT / "models") as server:
            server.wait("/health/ready", '"ready":true')
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                head = (
                    f"POST /v1/models/{_MODEL}/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(_ROW)}\r\n\r\n"
                )
                connection.sendall(head.encode() + _ROW[:_FIRST_BYTES])
                server.wait("/metrics", f"sevenfold_body_bytes {_FIRST_BYTES}.0")
                server.terminate()
                _wait_until_closed(server.port)
                connection.sendall(_ROW[_FIRST_BYTES:])
                answer = connection.makefile("rb").read()
            _expect(answer.startswith(b"HTTP/1.1 200"), answer[:200].decode(errors="replace"))
            code = server.exit_code()
            _expect(code == 0, f"exit code {code}")
            return "the request in flight was answered with 200 after the port had closed; exit code 0"

    def without_models(self) -> str:
        """Without models the server is live, but not ready, and says why."""
        with self.engine.serve(IMAGE) as server:
            server.wait("/health/started", '"started":true')
            live, (status, body) = server.get("/health/live")[0], server.get("/health/ready")
        _expect((live, status) == (200, 503), f"live: {live}, ready: {status}")
        reason = json.loads(body)["reason"]
        _expect("/models" in reason, f"the reason does not name the folder: {reason}")
        return f"live, not ready: {reason}"

    def bill_of_materials(self) -> str:
        """The bill of materials has the packages of the image, and only these."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cpu.cdx.json"
            write_sbom(self.engine, "cpu", path, self.arguments)
            sbom = json.loads(path.read_text("utf-8"))
        listed = {component["name"].lower().replace("_", "-") for component in sbom["components"]}
        names = "import importlib.metadata as m; print(*[d.metadata['Name'] for d in m.distributions(path=[p])])"
        installed = self._output(
            "python", "-c", f"import sysconfig; p = sysconfig.get_path('purelib'); {names}"
        ).split()
        _expect(
            listed == {name.lower().replace("_", "-") for name in installed}, f"{sorted(listed)} ≠ {sorted(installed)}"
        )
        return f"CycloneDX {sbom['specVersion']}, {len(listed)} packages, each of the image"

    def baked_models(self) -> str:
        """With MODELS=baked the image serves without a volume, and only the layer of the models differs."""
        tag = f"{IMAGE}-baked"
        self.engine.build("cpu", tag, arguments=self.arguments | {"MODELS": "baked"}, labels=self.labels)
        with self.engine.serve(tag) as server:
            server.wait("/health/ready", '"ready":true')
        below = [len(set(self.engine.layers(tag)) & set(self.engine.layers(IMAGE))), len(self.engine.layers(tag))]
        return f"ready without a volume; {below[0]} of {below[1]} layers are those of the other image"

    def reproducibility(self) -> str:
        """Built again without any cache, every layer is the same, byte by byte."""
        tag = f"{IMAGE}-again"
        self.engine.build("cpu", tag, arguments=self.arguments, labels=self.labels, cache=False)
        before, after = self.engine.layers(IMAGE), self.engine.layers(tag)
        different = [str(i) for i, (first, second) in enumerate(zip(before, after, strict=True)) if first != second]
        _expect(not different, f"layers {', '.join(different)} of {len(before)} differ")
        return f"{len(before)} layers are equal"

    def _output(self, *command: str) -> str:
        ended = self.engine.run(IMAGE, command)
        _expect(ended.code == 0, ended.output)
        return ended.output


def _expect(condition: bool, problem: str) -> None:
    if not condition:
        raise AssertionError(problem)


def _wait_until_closed(port: int) -> None:
    """Wait until the port refuses connections. Raises EngineError."""
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            return
        time.sleep(0.05)
    raise EngineError("The port is still open 30 s after SIGTERM.")


def main(arguments: Sequence[str]) -> int:
    """Build, check, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.image", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python-image", default=PYTHON_IMAGE, help="the base image")
    parser.add_argument("--engine", default="", help="docker, podman or buildah; default: the first that is usable")
    names = [name for name in vars(Checks) if not name.startswith("_")]
    parser.add_argument("--only", nargs="+", action="extend", metavar="NAME", choices=names, help="default: all checks")
    options = parser.parse_args(arguments)
    try:
        engine = find_engine(options.engine)
        values = build_arguments(options.python_image) | {"MODELS": "mounted"}
        labels = image_labels(options.python_image)
        engine.build("cpu", IMAGE, arguments=values, labels=labels)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    checks = Checks(engine, values, labels)
    failed = [name for name in options.only or names if not _passes(name, getattr(checks, name))]
    print(f"{len(failed)} checks failed" if failed else f"all checks passed ({engine.name})")
    return 1 if failed else 0


def _passes(name: str, check: Callable[[], str]) -> bool:
    started = time.monotonic()
    try:
        found, passed = check(), True
    except (AssertionError, EngineError, OSError, subprocess.SubprocessError) as error:
        found, passed = str(error), False
    print(
        f"{'pass' if passed else 'FAIL'}  {name.replace('_', ' '):18}{found}  [{time.monotonic() - started:.0f} s]",
        flush=True,
    )
    return passed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
