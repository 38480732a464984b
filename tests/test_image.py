"""What can be said of the image without building it; `make image-test` builds and runs it."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
INSTRUCTIONS = re.sub(r"\\\n(\s*#.*\n)*", " ", DOCKERFILE).splitlines()
ALLOWED = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
SERVING = ("serve.txt", "serve-gpu.txt", "serve-cuda12.txt", "tracing.txt", "ray.txt")
HADOLINT = Path(sys.executable).with_name("hadolint")


def stages() -> dict[str, list[str]]:
    """Return the instructions of each stage, by its name."""
    found: dict[str, list[str]] = {}
    for line in INSTRUCTIONS:
        if line.startswith("FROM "):
            name = line.split(" AS ")[1]
            found[name] = []
        if found and line and not line.startswith("#"):
            found[name].append(line)
    return found


def base_of(stage: str) -> str:
    return stages()[stage][0].split()[1]


def pinned(file: str) -> dict[str, set[str]]:
    """Return the versions of each package in a file of requirements: they can differ between versions of Python."""
    versions: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "requirements" / file).read_text(), re.MULTILINE):
        versions.setdefault(name, set()).add(version)
    return versions


def copied_from_the_context() -> set[str]:
    words = [line.split()[1:-1] for line in INSTRUCTIONS if line.startswith("COPY ") and "--from=" not in line]
    mounted = re.findall(r"type=bind,source=(\w+)", DOCKERFILE)
    return {word for line in words for word in line} | set(mounted)


def is_allowed(path: str) -> bool:
    return any(path == pattern or Path(path).match(pattern) for pattern in ALLOWED)


def packages_imported_by(package: str) -> set[str]:
    """Return which packages of this project the files of a package import."""
    own = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    names = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names & own


def test_what_is_copied_is_in_the_context_and_nothing_else_is():
    missing = {path for path in copied_from_the_context() if not is_allowed(path)}
    unused = {pattern for pattern in ALLOWED if not any(Path(p).match(pattern) for p in copied_from_the_context())}

    assert missing == set()
    assert unused == set()


@pytest.mark.parametrize(("stage", "package"), [("compiled-app", "service"), ("compiled-training", "training")])
def test_every_package_that_a_program_imports_is_in_its_image(stage: str, package: str):
    copied = {line.split()[1] for line in stages()[stage] if line.startswith("COPY ")}

    assert packages_imported_by(package) | packages_imported_by("tasks") <= copied


@pytest.mark.parametrize("file", SERVING)
def test_images_that_serve_have_no_torch(file: str):
    assert {"torch", "torchvision", "triton", "scikit-learn"} & pinned(file).keys() == set()


@pytest.mark.parametrize("file", ["serve.txt", "serve-gpu.txt", "serve-cuda12.txt"])
def test_tracing_is_pinned_to_the_versions_of_serving(file: str):
    serving, tracing = pinned(file), pinned("tracing.txt")

    assert {name for name in serving.keys() & tracing.keys() if serving[name] != tracing[name]} == set()


def test_every_package_is_installed_by_its_hash():
    installs = [line for line in INSTRUCTIONS if "pip install" in line]

    assert len(installs) == 6
    assert all(line.count("pip install") == line.count("--require-hashes") for line in installs)


@pytest.mark.parametrize("target", ["cpu", "cuda", "train"])
def test_an_image_runs_as_a_numbered_user_and_stops_by_sigterm(target: str):
    lines = stages()[target] + stages().get(base_of(target), [])

    assert "USER 10001:10001" in stages()[target][-1]
    assert "STOPSIGNAL SIGTERM" in lines
    assert any(line.startswith("ENTRYPOINT [") for line in lines)


@pytest.mark.parametrize("target", ["cpu", "cuda", "train", "ray"])
def test_the_code_is_the_last_layer(target: str):
    copies = [line for line in stages()[target] if line.startswith(("COPY ", "RUN ", "ADD "))]

    assert copies[-1].endswith(" /app /app")


@pytest.mark.parametrize("target", ["cpu", "cuda", "train", "ray"])
def test_nothing_is_installed_in_an_image_itself(target: str):
    lines = stages()[target] + stages().get(base_of(target), [])

    assert [line for line in lines if re.search(r"pip|apt-get|apk", line) and line.startswith("RUN ")] == []


def test_the_base_image_can_be_replaced():
    bases = {line.split()[1] for line in INSTRUCTIONS if line.startswith("FROM ")}

    assert bases - stages().keys() == {"${PYTHON_IMAGE}", "scratch"}


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is not installed; make test installs it")
def test_hadolint_has_no_complaint():
    ended = subprocess.run([HADOLINT, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.stdout == ""
    assert ended.returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize("script", ["requirements/split_layers.sh", "tests/image/make_base_image.sh"])
def test_a_script_is_valid_and_can_be_executed(script: str):
    subprocess.run(["bash", "-n", ROOT / script], check=True)

    assert (ROOT / script).stat().st_mode & 0o111
