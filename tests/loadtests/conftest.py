from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.server import start_server
from tests.tiny.models import publish_every_task


@pytest.fixture(scope="session")
def url(tmp_path_factory) -> Iterator[str]:
    """The address of a server with a tiny model of each task."""
    models: Path = tmp_path_factory.mktemp("models")
    publish_every_task(models)
    with start_server(models, "--log-level", "warning") as (_, port):
        yield f"http://127.0.0.1:{port}"
