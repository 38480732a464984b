"""The commands that read a pod's log work on what a server writes to both of its streams, as `kubectl logs` does."""

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from loadtests.server import start_process
from tests.monitoring.queries import ROOT

BLOCK = re.search(r"^## Logs\n.*?```sh\n(.*?)```", (ROOT / "docs" / "monitoring.md").read_text("utf-8"), re.S | re.M)
COMMANDS = BLOCK[1].splitlines() if BLOCK else []


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    (folder / "models").mkdir()
    (folder / "models" / "adult").symlink_to(ROOT / "models" / "adult")
    path = folder / "log"
    with path.open("w") as output, start_process(folder / "models", cwd=ROOT, stderr=output) as process:
        assert process.stdout
        line = process.stdout.readline()
        url = re.search(r"http://[\d.]+:\d+", line)
        assert url
        httpx.get(f"{url[0]}/v1/models/nobody", headers={"X-Request-Id": "4f1c"}, timeout=60)
        process.terminate()
        written = line + process.stdout.read()
    path.write_text(written + path.read_text("utf-8"), "utf-8")
    return path


@pytest.mark.skipif(shutil.which("jq") is None, reason="there is no jq here")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_reads_the_log(command: str, log: Path) -> None:
    line = command.replace("kubectl logs deploy/sevenfold", f"cat {log}").replace("4f1c…", "4f1c")

    ended = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stderr) == (0, "")
    if "4f1c" in line:
        assert "model_not_found" in ended.stdout


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) == 2
