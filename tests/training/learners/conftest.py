import pytest

from training.__main__ import main


@pytest.fixture
def train(tmp_path, capsys):
    """Runs the command line in this process with all folders in the test's; returns status, output and errors."""

    def run(*arguments):
        folders = ["--runs", tmp_path / "runs", "--models", tmp_path / "models", "--data-dir", tmp_path / "data"]
        status = main([str(word) for word in (*arguments, *folders, "--device", "cpu", "--threads", "1")])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
