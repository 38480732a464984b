"""BentoML: a worker per core. Rows come as JSON, pictures and texts as the file of a form.

Its batching is for endpoints whose clients send lists, so that one request with one picture cannot use it.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType

from benchmarks.peers.workload import read_assignment

ASSIGNMENT = read_assignment()
Json = Annotated[bytes, ContentType("application/json")]


class _Worker:
    def __init__(self) -> None:
        self.workload = ASSIGNMENT.load()


class _Rows(_Worker):
    @bentoml.api(route="/predict")
    def predict(self, rows: list[dict[str, Any]]) -> Json:
        """Answer rows."""
        return self.workload.answer({"rows": rows})


class _Files(_Worker):
    @bentoml.api(route="/predict")
    def predict(self, body: Path) -> Json:
        """Answer a picture or a text."""
        return self.workload.answer(body.read_bytes())


_is_table = json.loads((ASSIGNMENT.folder / "manifest.json").read_bytes())["task"] == "tabular"
Model = bentoml.service(name="model", workers=ASSIGNMENT.processes)(_Rows if _is_table else _Files)


if __name__ == "__main__":
    folder = str(Path(__file__).parent.resolve())
    options = ["--working-dir", folder, "--host", "127.0.0.1", "--port", str(ASSIGNMENT.port)]
    os.environ |= {"BENTOML_DO_NOT_TRACK": "1", "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false"}
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", "server:Model", *options])  # noqa: S606
