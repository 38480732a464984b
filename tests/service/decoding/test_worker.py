"""What a worker process has when it starts."""

import subprocess
import sys

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
