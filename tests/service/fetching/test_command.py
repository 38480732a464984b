import hashlib
import subprocess
import sys

import httpx
import pytest

from tests.service.program import ROOT, program

TIMEOUT_S = 60


def fetch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", "fetch", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_fetched_models_are_served(server, published, tmp_path):
    sha256 = hashlib.sha256((published / "manifest.json").read_bytes()).hexdigest()
    models = tmp_path / "models"

    ended = fetch(
        "--from", f"{server.address}/store", "--to", str(models), "--sha256", f"credit/1={sha256}", "credit/1"
    )
    with program(models) as (_, address, _):
        served = httpx.get(f"{address}/v1/models").json()["models"]

    assert ended.returncode == 0, ended.stderr
    assert "credit/1: 3 files" in ended.stdout
    assert [(model["name"], model["state"]) for model in served] == [("credit", "ready")]


def test_a_wrong_checksum_ends_with_an_error_and_no_model(server, published, tmp_path):
    server.files["/store/credit/1/goldens.json"] += b" "
    models = tmp_path / "models"

    ended = fetch("--from", f"{server.address}/store", "--to", str(models), "credit/1")

    assert ended.returncode == 1
    assert ended.stderr.startswith("fetch: http://127.0.0.1:")
    assert "goldens.json is larger than" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (models / "credit" / "1").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "https://host", "credit"], "'credit' is not NAME/VERSION"),
        (["--from", "https://host", "credit/0"], "is not NAME/VERSION"),
        (["--from", "https://host", "../credit/1"], "is not NAME/VERSION"),
        (["--from", "ftp://host", "credit/1"], "--from must begin with"),
        (["--from", "https://host", "--sha256", "credit/1=abc", "credit/1"], "64 hexadecimal digits"),
        (["--from", "https://host", "--sha256", f"other/1={'0' * 64}", "credit/1"], "versions that are downloaded"),
        (["--from", "https://host", "--attempts", "0", "credit/1"], "must be a positive integer"),
        (["--from", "https://host", "--token-file", "nowhere", "credit/1"], "nowhere cannot be used"),
        (["credit/1"], "--from"),
    ],
)
def test_wrong_arguments_are_an_error(arguments, message):
    ended = fetch(*arguments)

    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_folder_that_cannot_be_written_is_named(server, published, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")

    ended = fetch("--from", f"{server.address}/store", "--to", str(blocked), "credit/1")

    assert ended.returncode == 1
    assert f"{blocked}/credit cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_token_that_no_header_can_contain_is_refused_without_being_printed(server, tmp_path):
    (tmp_path / "token").write_text("secret-token\nand a second line\n")

    ended = fetch("--from", server.address, "--token-file", str(tmp_path / "token"), "credit/1")

    assert ended.returncode == 2
    assert "contains no token" in ended.stderr
    assert "secret" not in ended.stdout + ended.stderr
    assert server.requests == []
