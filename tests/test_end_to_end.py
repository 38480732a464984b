"""End to end: training on the user's own data, publishing, serving, and an answer over HTTP."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service.program import program

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def train(*arguments: str, folder: Path) -> str:
    """Train and publish with the command line; return its standard output."""
    folders = ["--runs", str(folder / "runs"), "--models", str(folder / "models"), "--data-dir", str(folder / "data")]
    process = subprocess.run(
        [sys.executable, "-m", "training", *arguments, *folders, "--publish", "--anyway"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


def write_images(folder: Path) -> None:
    """Write noisy images, bright and dark."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("valid", 8)):
        for label, level in (("bright", 200), ("dark", 50)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = generator.normal(level, 20, (40, 30, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")


@pytest.mark.slow
def test_model_trained_on_a_folder_of_images_answers_over_http(tmp_path: Path) -> None:
    write_images(tmp_path / "light")
    flags = ["--weights", "none", "--backbone", "resnet18", "--size", "32", "--epochs", "3", "--no-augment"]

    train("classification", "--data", str(tmp_path / "light"), "--name", "light", *flags, folder=tmp_path)

    image = tmp_path / "light" / "valid" / "bright" / "0.png"
    with program(tmp_path / "models") as (_, address, _):
        url = f"{address}/v1/models/light"
        answer = httpx.post(f"{url}/predict", content=image.read_bytes(), headers={"content-type": "image/png"})
        details = httpx.get(url).json()
        example = httpx.post(f"{url}/predict", json=details["example"])

    assert answer.status_code == example.status_code == 200
    assert {entry["label"] for entry in answer.json()["labels"]} == {"bright", "dark"}
    assert details["metrics"][0]["name"] == "accuracy"
    assert "light" in details["card"]


@pytest.mark.slow
def test_model_trained_on_a_table_answers_over_http(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with (tmp_path / "customers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["calls", "plan", "left"])
        for _ in range(600):
            calls, plan = generator.normal(10, 3), generator.choice(["basic", "gold"])
            writer.writerow([f"{calls:.2f}", plan, "yes" if calls + 4 * (plan == "basic") > 12 else "no"])
    data = ["--data", str(tmp_path / "customers.csv"), "--target", "left", "--name", "churn"]

    output = train("tabular", *data, "--epochs", "4", folder=tmp_path)

    rows = [{"calls": 20, "plan": "basic"}, {"calls": 1, "plan": "gold"}, {"calls": None, "plan": "platinum"}]
    with program(tmp_path / "models") as (_, address, _):
        answer = httpx.post(f"{address}/v1/models/churn/predict", json={"rows": rows})

    assert answer.status_code == 200, answer.text
    assert [row["label"] for row in answer.json()["predictions"]][:2] == ["yes", "no"]
    assert "platinum" in answer.json()["notices"][-1]
    assert "gradient boosting" in output.lower()


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not beside this project in ../shared/data")
def test_manifests_of_shipped_models_have_the_hash_of_their_data() -> None:
    known = {line.split()[0] for line in (SHARED / "SHA256SUMS").read_text().splitlines()}

    for path in (ROOT / "models").glob("*/*/manifest.json"):
        assert json.loads(path.read_text())["data"]["sha256"] in known
