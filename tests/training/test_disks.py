"""Disks that are full, folders that cannot be written or read: one sentence, status 2, and nothing half-written."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.system_errors import describe_os_error
from training.__main__ import main
from training.core.files import write_file
from training.reporting import run_folder

ROOT = Path(__file__).parents[2]
TABULAR = ("--target", "churn", "--epochs", "1", "--device", "cpu", "--threads", "1", "--publish", "--anyway")


def run_with_limit(folder: Path, limit: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the training program in a folder; no file may grow beyond `limit` bytes, as on a disk that is full."""
    return subprocess.run(
        [sys.executable, "-B", "-m", "training", *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )


def sentences(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("training: ")]


@pytest.mark.parametrize("limit", [100, 20_000])
def test_a_full_disk_ends_training_with_a_sentence(table, tmp_path: Path, limit: int) -> None:
    """100 bytes are too few for the settings of the run, 20,000 for a checkpoint."""
    ended = run_with_limit(tmp_path, limit, "tabular", "--data", table(), *TABULAR)

    assert ended.returncode == 2, ended.stderr
    (sentence,) = sentences(ended.stderr)
    assert "the file would be larger than the system allows" in sentence
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "models").exists()
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob("*.pt"))


def test_a_disk_that_fills_up_while_publishing_leaves_no_version(table, tmp_path: Path) -> None:
    words = ("tabular", "--data", table(), *TABULAR, "--torchscript")
    assert run_with_limit(tmp_path, 10**9, *words).returncode == 0
    graph = tmp_path / "models" / "tabular" / "1" / "model.onnx"

    ended = run_with_limit(tmp_path, graph.stat().st_size - 1, *words, "--resume")

    assert ended.returncode == 2, ended.stderr
    assert len(sentences(ended.stderr)) == 1
    assert "Traceback" not in ended.stderr
    assert [path.name for path in (tmp_path / "models" / "tabular").iterdir()] == ["1"]


@pytest.mark.parametrize("option", ["--models", "--runs"])
@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/proc/models", ""),
        ("a-file", "part of its path"),
        ("a-file/models", "part of its path"),
        ("x" * 300, "the path is too long"),
    ],
    ids=["read-only", "a file", "in a file", "too long"],
)
def test_a_folder_that_cannot_be_written_is_named_before_training(
    table, tmp_path: Path, capsys, monkeypatch, option: str, folder: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("x")

    status = main(["tabular", "--data", str(table()), *TABULAR, option, folder])

    printed = capsys.readouterr()
    assert status == 2
    assert "Training on" not in printed.out
    (sentence,) = sentences(printed.err)
    assert sentence.startswith(f"training: {option} {folder}/tabular: no file can be written there: {reason}")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["folder.csv", "long"])
def test_data_that_the_system_does_not_open_is_a_sentence(tmp_path: Path, capsys, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    data = tmp_path / (name if name != "long" else "y" * 300)

    status = main(["tabular", "--data", str(data), *TABULAR, "--runs", str(tmp_path / "runs")])

    assert (status, len(sentences(capsys.readouterr().err))) == (2, 1)


def test_a_folder_of_the_data_that_cannot_be_listed_is_not_left_out(tmp_path: Path) -> None:
    """Root reads everything: the rights to do so are dropped where the test runs as root."""
    for label in ("red", "green", "blue"):
        (tmp_path / "data" / label).mkdir(parents=True)
    locked = tmp_path / "data" / "green"
    locked.chmod(0)
    program = (
        "import sys, pathlib; from training.core.files import require_readable; "
        "require_readable(pathlib.Path(sys.argv[1]))"
    )
    is_root, setpriv = os.geteuid() == 0, shutil.which("setpriv")
    if is_root and not setpriv:
        pytest.skip("there is no setpriv here")
    rights = [setpriv, "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"] if is_root else []

    ended = subprocess.run(
        [*rights, sys.executable, "-c", program, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    locked.chmod(0o700)

    assert f"PermissionError: [Errno 13] Permission denied: '{locked}'" in ended.stderr


def test_writing_a_file_keeps_the_old_one_if_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    write_file(path, "old")

    with pytest.raises(TypeError):
        write_file(path, 3)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="too long") as raised:
        write_file(tmp_path / ("z" * 300), "new")

    assert [item.name for item in tmp_path.iterdir()] == ["history.json"]
    assert path.read_text() == "old"
    assert "the path is too long" in describe_os_error(raised.value)


def test_a_settings_file_that_was_cut_off_is_no_run_to_resume(tmp_path: Path) -> None:
    folder = run_folder.find_or_create(tmp_path, {"recipe": "x"}, "auto")
    settings = folder / "settings.json"
    settings.write_text(settings.read_text()[:5])

    other = run_folder.find_or_create(tmp_path, {"recipe": "x"}, "auto")

    assert other != folder
    assert json.loads((other / "settings.json").read_text()) == {"recipe": "x"}


def test_an_error_from_a_process_that_prepares_batches_is_reduced_to_its_reason() -> None:
    error = OSError("Caught OSError in worker 0.\nTraceback (most recent call last):\n  …\nOSError: broken image file")

    assert describe_os_error(error) == "The system refused: OSError: broken image file."
