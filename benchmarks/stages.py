"""Where the time of one request goes: each model, each form of its answer, the example and larger pictures.

The figures are the service's own (Server-Timing), the median of several requests, one at a time.
"""

import io
import re
import statistics
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.serving import request_to, service_of
from tasks.contract import Representation
from tasks.manifest import read_manifest

_REQUESTS = 7
_LARGE = ((1000, 1000), (4000, 3000))
"""The largest picture that super-resolution takes by default, and that of a phone."""
STAGES = ("receive", "decode", "queue", "infer", "postprocess")


def measure_stages(models: Path) -> dict[str, Any]:
    """A row for each model, size of picture and form of the answer; milliseconds."""
    rows = []
    with service_of(models) as service:
        for folder in sorted(models.glob("*/[0-9]*")):
            manifest = read_manifest(folder)
            task = manifest.load_task(folder)
            url = f"{service}/v1/models/{manifest.name}/versions/{manifest.version}/predict"
            for size, (content_type, body) in _bodies(folder, manifest.name).items():
                for representation in task.representations:
                    found = _stages(url, content_type, body, representation)
                    rows.append({"model": manifest.name, "picture": size, "form": representation.media_type} | found)
    return {"rows": rows}


def _bodies(folder: Path, name: str) -> dict[str, tuple[str, bytes]]:
    """What is sent: the example, and where a picture is asked for, larger ones of the same."""
    kind, body = request_to(folder, name)
    if not kind.startswith("image/"):
        return {"–": (kind, body)}
    image = Image.open(io.BytesIO(body))
    found = {f"{image.width}×{image.height}": (kind, body)}
    for size in _LARGE:
        file = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found["×".join(map(str, size))] = ("image/jpeg", file.getvalue())
    return found


def _stages(url: str, content_type: str, body: bytes, representation: Representation) -> dict[str, Any]:
    headers = {"Content-Type": content_type, "Accept": representation.media_type}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 -- http, a server of our own.
    taken: list[dict[str, float]] = []
    size = 0
    for _ in range(_REQUESTS):
        try:
            with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
                size = len(response.read())
                timing = response.headers["Server-Timing"]
        except urllib.error.HTTPError as error:
            with error:
                return {"status": error.code}
        taken.append({name: float(ms) for name, ms in re.findall(r"(\w+);dur=([0-9.]+)", timing)})
    stages = {name: statistics.median(one.get(name, 0.0) for one in taken) for name in STAGES}
    slowest = max(stages, key=lambda name: stages[name])
    return {"status": 200, "stages_ms": stages, "bytes": size, "slowest": slowest}


def stages_table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| model | picture | form | " + " | ".join(f"{name}, ms" for name in STAGES) + " | answer, kB |",
        "|---|---|---|" + "---|" * (len(STAGES) + 1),
    ]
    for row in found["rows"]:
        start = f"| {row['model']} | {row['picture']} | `{row['form']}` | "
        if row["status"] != 200:
            lines.append(start + f"refused with {row['status']} |" + " |" * len(STAGES))
            continue
        stages = " | ".join(
            f"**{ms:.1f}**" if name == row["slowest"] else f"{ms:.1f}" for name, ms in row["stages_ms"].items()
        )
        lines.append(start + f"{stages} | {row['bytes'] / 1000:.0f} |")
    return "\n".join(lines)
