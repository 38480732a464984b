"""A new task is one file in tasks/ and one folder in training/learners/; no other file changes.

`tests/new_task/` holds both for an eighth task, a number from an image. They are copied over a copy of the packages, in
which the task is trained, published and served, and passes the tests that every task must pass.
"""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from loadtests.server import start_server

ROOT = Path(__file__).parents[1]
NEW_FILES = Path(__file__).parent / "new_task"


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """A copy of the packages and their tests, with the new task."""
    for name in ("tasks", "training", "service", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(NEW_FILES, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run_module(source_tree: Path, *arguments: str) -> str:
    """Run `python -m` in the copy, and return its standard output."""
    command = [sys.executable, "-m", *arguments]
    process = subprocess.run(command, cwd=source_tree, capture_output=True, text=True, check=False, timeout=170)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


def write_data(folder: Path) -> None:
    """Write images of one colour each, and their brightness."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    with (folder / "values.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "value"])
        for i in range(32):
            colour = generator.integers(0, 256, 3)
            Image.new("RGB", (20, 20), tuple(colour.tolist())).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", colour.mean() / 255])


def test_new_task_is_one_module_and_one_learner() -> None:
    files = {path.relative_to(NEW_FILES).as_posix() for path in NEW_FILES.rglob("*.py")}

    assert files == {
        "tasks/brightness.py",
        "training/learners/brightness/__init__.py",
        "training/learners/brightness/learner.py",
    }
    assert not [path for path in files if (ROOT / path).exists()]


@pytest.mark.slow
def test_new_task_is_trained_published_and_served(source_tree: Path) -> None:
    write_data(source_tree / "images")
    folders = ["--runs", "runs", "--models", "models", "--data-dir", "data"]
    flags = ["--data", "images", "--name", "glow", "--device", "cpu", "--threads", "1", "--publish"]

    output = run_module(source_tree, "training", "brightness", *flags, *folders)

    card = (source_tree / "models" / "glow" / "1" / "README.md").read_text("utf-8")
    (report,) = (source_tree / "runs" / "glow").rglob("index.html")
    assert "image-regression" in card
    assert all("mae" in text for text in (output, card, report.read_text("utf-8")))

    for name, level in (("dark", 51), ("bright", 204)):
        Image.new("RGB", (50, 40), (level, level, level)).save(source_tree / f"{name}.png")
    with start_server(Path("models"), cwd=source_tree) as (_, port):
        address = f"http://127.0.0.1:{port}"
        url = f"{address}/v1/models/glow"
        dark, bright = (
            httpx.post(
                f"{url}/predict",
                content=(source_tree / f"{name}.png").read_bytes(),
                headers={"content-type": "image/png"},
            )
            for name in ("dark", "bright")
        )
        example = httpx.post(f"{url}/predict", json=httpx.get(url).json()["example"])
        paths = httpx.get(f"{address}/openapi.json").json()["paths"]

    assert [answer.status_code for answer in (dark, bright, example)] == [200, 200, 200]
    assert dark.json()["brightness"] == pytest.approx(0.2, abs=0.05)
    assert bright.json()["brightness"] == pytest.approx(0.8, abs=0.05)
    assert "/v1/models/glow/predict" in paths


@pytest.mark.slow
def test_new_task_passes_the_tests_of_every_task(source_tree: Path) -> None:
    files = [
        "tests/tasks/test_contract.py",
        "tests/tasks/test_comparison.py",
        "tests/service/http/test_predict_every_task.py",
    ]

    output = run_module(source_tree, "pytest", "-q", "-k", "brightness", "-p", "no:cacheprovider", *files)

    assert re.search(r"[1-9][0-9]* passed", output)
