"""The checks of `make image-test` that need no image: they read what the server of this checkout says."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtests.server import start_server
from tests.image.__main__ import Checks, main
from tests.image.engine import Engine, Server


class _OnThisMachine(Engine):
    """Starts the server of this checkout in place of a container."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def serve(self, tag: str, *, models: Path | None = None) -> Iterator[Server]:
        models = models or self._folder
        with start_server(models, stderr=subprocess.DEVNULL) as (process, port):
            yield Server(process, port)


def test_a_server_without_models_says_why_it_is_not_ready(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()

    found = Checks(_OnThisMachine(folder), {}, {}).without_models()

    assert found.startswith("live, not ready: ")
    assert str(folder) in found


def test_a_check_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "sise"])

    assert ended.value.code == 2
    assert "sise" in capsys.readouterr().err
