"""What is published says nothing about the machine that trained, and what its publisher wants to say."""

from pathlib import Path

import pytest

from tasks.manifest import read_manifest
from training.__main__ import main
from training.reporting.report import reproduction_command

SETTINGS = ("--epochs", "1", "--device", "cpu", "--threads", "1")


@pytest.fixture
def published(table, tmp_path: Path) -> Path:
    """The folder of a model that was trained on a table in the test's folder."""
    folders = [f"--{name}={tmp_path / name}" for name in ("runs", "models", "data-dir")]
    words = [
        "--title",
        "Who leaves?",
        "--description",
        "Ranks customers for a phone call.",
        "--torchscript",
        "--publish",
        "--anyway",  # It is hardly trained.
    ]

    assert (
        main(["tabular", "--data", str(table()), "--target", "churn", "--name", "churn", *SETTINGS, *folders, *words])
        == 0
    )

    return tmp_path / "models" / "churn" / "1"


def test_a_published_folder_names_no_folder_of_the_machine(published: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    contents = {path.name: path.read_bytes() for path in published.iterdir()}

    assert {"model.onnx", "model.ts", "README.md", "manifest.json"} <= set(contents)
    for folder in (tmp_path, root, Path.home()):
        assert not [name for name, content in contents.items() if f"{folder}/".encode() in content]
    assert "--data customers.csv" in contents["README.md"].decode()


def test_title_and_description_are_published(published: Path) -> None:
    manifest, card = read_manifest(published), (published / "README.md").read_text("utf-8")

    assert (manifest.title, manifest.description) == ("Who leaves?", "Ranks customers for a phone call.")
    assert "# Who leaves?\n" in card
    assert "\nRanks customers for a phone call.\n" in card
    assert "--title 'Who leaves?'" in card


def test_a_command_contains_the_names_of_files_only(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_text("x")
    values = {"weights": str(tmp_path / "weights.pth"), "group_pattern": "a/b"}

    command = reproduction_command("classification", values, dict.fromkeys(values), tmp_path)

    assert command == (
        f"python -m training classification --data {tmp_path.name} --weights weights.pth --group-pattern a/b --publish"
    )


def test_the_folder_where_training_was_started_is_named_as_data(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert f"--data {tmp_path.name} " in reproduction_command("tabular", {}, {}, Path("."))
    assert "--data DATA " in reproduction_command("tabular", {}, {}, Path("/"))
