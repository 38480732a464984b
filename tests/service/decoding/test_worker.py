"""What a worker process imports: everything before it is forked."""

import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
from PIL import Image

from loadtests.server import start_server
from tests.model_folders import publish
from tests.service.program import ROOT
from tests.tiny.models import tiny

_PROGRAM = """
import io, sys
from PIL import Image
from service.decoding.worker import preload

preload()
from tasks._images import decode_image

imported = set(sys.modules)
for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    decode_image(file.getvalue(), max_pixels=100)
print(*sorted(name for name in set(sys.modules) - imported if name.startswith(("PIL", "tasks"))))
"""


def test_no_decoder_is_imported_within_a_request() -> None:
    ended = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)

    assert ended.stdout.split() == []


def test_a_request_over_http_imports_no_web_framework_into_a_worker_process(tmp_path: Path) -> None:
    publish(tmp_path, "images", *tiny("classification"))
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")

    with (tmp_path / "log").open("w+") as log:
        # Python then reports on standard error what each process imports, worker processes included.
        environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
        with start_server(tmp_path, cwd=ROOT, stderr=log, env=environment) as (_, port):
            response = httpx.post(
                f"http://127.0.0.1:{port}/v1/models/images/predict",
                content=picture.getvalue(),
                headers={"content-type": "image/png"},
                timeout=60,
            )
        log.seek(0)
        imported = Counter(line.rpartition("|")[2].strip() for line in log)

    assert response.status_code == 200
    assert imported["PIL.Image"] == 2  # The server, and the process that forks workers.
    assert imported["fastapi"] == imported["starlette.requests"] == 1
