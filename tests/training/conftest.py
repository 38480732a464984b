import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

# The duration of an example depends more on the load of the machine than on the code.
hypothesis.settings.register_profile("training", deadline=None)
hypothesis.settings.load_profile("training")

ROOT = Path(__file__).parents[2]
COLOURS = {"green": (40, 170, 60), "red": (190, 40, 40), "blue": (40, 60, 200)}


def draw_image(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A noisy image of one colour, with a dark block at a random position so that all images differ."""
    random = np.random.default_rng(seed)
    pixels = np.array(colour) + random.normal(0, 25, (size[1], size[0], 3))
    top, left = random.integers(0, size[1] - 12), random.integers(0, size[0] - 12)
    pixels[top : top + 12, left : left + 12] *= random.uniform(0.2, 0.6)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(autouse=True)
def one_thread():
    """One thread per test process: the threads of concurrent test processes would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of images, `count` of each colour."""

    def make(
        name: str = "photos", count: int = 12, classes: tuple[str, ...] = ("green", "red"), first: int = 0
    ) -> Path:
        for number, label in enumerate(classes):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for i in range(count):
                draw_image(COLOURS[label], 1000 * number + first + i).save(folder / f"{i:03}.png")
        return tmp_path / name

    return make


def table_rows(count: int) -> list[dict[str, object]]:
    random = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for i in range(count):
        age, city = int(random.integers(18, 80)), str(random.choice(["Oslo", "Lima", "Pune"]))
        spent = round(float(random.exponential(100)), 2)
        stays = age > 45 or (city == "Oslo" and spent > 50)
        rows.append(
            {
                "customer": f"c{i:05}",
                "age": "" if i % 17 == 0 else age,
                "city": "" if i % 23 == 0 else city,
                "spent": spent,
                "churn": "no" if stays else "yes",
            }
        )
    return rows


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Write a CSV file of customers."""

    def make(name: str = "customers.csv", count: int = 300) -> Path:
        path = tmp_path / name
        rows = table_rows(count)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return make


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `python -m training …` with runs and models in the test's folder."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, launcher: tuple[str, ...] = ("-m",)) -> subprocess.Popen[str]:
        paths = ["--runs", tmp_path / "runs", "--models", tmp_path / "models", "--data-dir", tmp_path / "data"]
        words = [sys.executable, *launcher, "training", *arguments, *paths, "--device", "cpu"]
        process = subprocess.Popen(
            [str(word) for word in words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()
