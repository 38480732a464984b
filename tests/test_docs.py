"""What the documents say is so: their commands run, their answers come, their links and figures are right."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from service.server import VERSION
from tasks.manifest import read_manifest, verify_files
from tests.service.program import program

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
MODELS = sorted(path.parent for path in (ROOT / "models").glob("*/*/manifest.json"))
BLOCKS = re.findall(r"```(sh|json)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.replace("\\\n", "").splitlines()
    if line.startswith((".venv/", "make"))
]
QUESTIONS = [
    (block, json.loads(BLOCKS[i + 1][1]))
    for i, (kind, block) in enumerate(BLOCKS)
    if kind == "sh" and block.startswith("curl") and BLOCKS[i + 1][0] == "json"
]
PLAIN = [
    line
    for kind, block in BLOCKS
    if kind == "sh" and block.startswith("curl")
    for line in block.replace("\\\n", "").splitlines()
    if " -o " not in line
]
FILES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines() if " -o " in line]


def test_program_package_and_chart_have_the_same_version() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    chart = yaml.safe_load((ROOT / "helm" / "Chart.yaml").read_text("utf-8"))

    assert {VERSION, package, chart["version"], chart["appVersion"]} == {VERSION}


def test_the_readme_is_short_enough_to_read() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_knows_what_the_readme_tells_to_make(command: str) -> None:
    ended = subprocess.run(
        command.replace("make", "make --dry-run", 1),
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.endswith("--help")])
def test_help_helps(command: str) -> None:
    ended = subprocess.run(
        [sys.executable, *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert "usage" in ended.stdout.lower()
    assert len(ended.stdout.splitlines()) > 10


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with program(ROOT / "models") as (_, address, _):
        yield address


def is_part_of(part: Any, whole: Any) -> bool:
    if isinstance(part, dict):
        return all(key in whole and is_part_of(value, whole[key]) for key, value in part.items())
    if isinstance(part, list):
        return len(part) <= len(whole) and all(is_part_of(p, w) for p, w in zip(part, whole, strict=False))
    return bool(part == whole)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize(("command", "expected"), QUESTIONS)
def test_the_readmes_questions_get_the_readmes_answers(address: str, command: str, expected: Any) -> None:
    line = command.replace("http://127.0.0.1:8000", address).replace("curl", "curl --silent", 1)

    ended = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)

    assert is_part_of(expected, json.loads(ended.stdout)), ended.stdout[:500]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("command", PLAIN)
def test_the_readmes_questions_are_answered(address: str, command: str) -> None:
    line = command.replace("http://127.0.0.1:8000", address).replace("curl", "curl --silent --fail", 1)

    ended = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)

    assert f"/{json.loads(ended.stdout)['model']}/predict" in command


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_a_version_is_added_and_rolled_back_as_the_operating_page_tells(tmp_path: Path) -> None:
    add, roll_back = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "operating.md").read_text("utf-8"), re.DOTALL)
    shutil.copytree(ROOT / "models" / "adult", tmp_path / "models" / "adult")

    subprocess.run(add, shell=True, cwd=tmp_path, check=True)
    with program(tmp_path / "models", "--admin") as (_, address, _):
        line = roll_back.replace("http://127.0.0.1:8000", address).replace("curl", "curl --silent --fail", 1)
        ended = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)

    (shipped,) = (path.name for path in MODELS if path.parent.name == "adult")
    assert json.loads(ended.stdout)["default"] == shipped


def test_the_readme_has_a_line_to_try_for_every_model() -> None:
    asked = set(re.findall(r"/v1/models/([a-z]+)/predict", README))

    assert asked == {folder.parent.name for folder in MODELS}


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("command", FILES)
def test_the_readmes_files_are_images(address: str, command: str, tmp_path: Path) -> None:
    line = command.replace("http://127.0.0.1:8000", address).replace("@examples", f"@{ROOT}/examples")

    subprocess.run(line, shell=True, cwd=tmp_path, check=True, capture_output=True)

    (written,) = tmp_path.iterdir()
    with Image.open(written) as image:
        assert min(image.size) > 100


DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_points_to_is_there(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")

    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    paths = re.findall(r"(?<![\w/])((?:tasks|training|service|benchmarks|tests|docs)/[\w/-]+\.(?:py|md|json))", text)
    missing = {link for link in links if not ((ROOT / document).parent / link).exists()}
    assert missing | {path for path in paths if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_a_shipped_model_is_whole_and_the_readme_states_its_figures(folder: Path) -> None:
    manifest = read_manifest(folder)
    verify_files(folder, manifest)

    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{manifest.name}`")]
    figures = re.findall(r"\d+\.\d+", row.split("|")[3])
    assert figures
    for figure in figures:
        digits = len(figure.partition(".")[2])
        assert float(figure) in {round(metric.value, digits) for metric in manifest.metrics}, figure


def test_the_shipped_models_are_small_enough_to_ship() -> None:
    assert MODELS
    size = sum(path.stat().st_size for path in (ROOT / "models").rglob("*") if path.is_file())
    assert size < 60_000_000


def test_no_model_holds_code() -> None:
    kinds = {path.suffix for path in (ROOT / "models").rglob("*") if path.is_file()}
    assert kinds <= {".onnx", ".json", ".md"}
