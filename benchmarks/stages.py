"""The time of each stage of a request: for each model, each representation of its answer, and several image sizes.

The figures are the service's own (Server-Timing): medians of several requests, sent one at a time.
"""

import io
import re
import statistics
import urllib.error
import urllib.request
from collections.abc import Collection
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.serving import example_request, start_service
from tasks.contract import Representation
from tasks.manifest import read_manifest

_REQUESTS = 7
_LARGE_SIZES = ((1000, 1000), (4000, 3000))
"""The largest image that super-resolution accepts by default, and one of a phone."""
STAGES = ("receive", "decode", "queue", "infer", "postprocess")


def measure_stages(models: Path, names: Collection[str] = ()) -> dict[str, Any]:
    """Return a row for each model, image size and representation; times in milliseconds.

    `names` are the models to measure; empty for all.
    """
    rows = []
    with start_service(models) as port:
        for folder in sorted(models.glob("*/[0-9]*")):
            if names and folder.parent.name not in names:
                continue
            manifest = read_manifest(folder)
            task = manifest.load_task(folder)
            url = f"http://127.0.0.1:{port}/v1/models/{manifest.name}/versions/{manifest.version}/predict"
            for size, (content_type, body) in _bodies(folder, manifest.name).items():
                for representation in task.representations:
                    stages = _measure_request(url, content_type, body, representation)
                    row = {"model": manifest.name, "image": size, "representation": representation.media_type}
                    rows.append(row | stages)
    return {"rows": rows}


def _bodies(folder: Path, name: str) -> dict[str, tuple[str, bytes]]:
    """Return the example request and, if it is an image, larger versions of it; keyed by image size."""
    content_type, body = example_request(folder, name)
    if not content_type.startswith("image/"):
        return {"–": (content_type, body)}
    image = Image.open(io.BytesIO(body))
    bodies = {f"{image.width}×{image.height}": (content_type, body)}
    for size in _LARGE_SIZES:
        file = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        bodies["×".join(map(str, size))] = ("image/jpeg", file.getvalue())
    return bodies


def _measure_request(url: str, content_type: str, body: bytes, representation: Representation) -> dict[str, Any]:
    headers = {"Content-Type": content_type, "Accept": representation.media_type}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 -- http, a server of our own.
    timings: list[dict[str, float]] = []
    size = 0
    for _ in range(_REQUESTS):
        try:
            with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
                size = len(response.read())
                header = response.headers["Server-Timing"]
        except urllib.error.HTTPError as error:
            with error:
                return {"status": error.code}
        timings.append({name: float(ms) for name, ms in re.findall(r"(\w+);dur=([0-9.]+)", header)})
    stages = {name: statistics.median(timing.get(name, 0.0) for timing in timings) for name in STAGES}
    slowest = max(stages, key=lambda name: stages[name])
    return {"status": 200, "stages_ms": stages, "bytes": size, "slowest": slowest}


def stages_table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| model | image | representation | " + " | ".join(f"{name}, ms" for name in STAGES) + " | answer, kB |",
        "|---|---|---|" + "---|" * (len(STAGES) + 1),
    ]
    for row in results["rows"]:
        start = f"| {row['model']} | {row['image']} | `{row['representation']}` | "
        if row["status"] != 200:
            lines.append(start + f"rejected with {row['status']} |" + " |" * len(STAGES))
            continue
        stages = " | ".join(
            f"**{ms:.1f}**" if name == row["slowest"] else f"{ms:.1f}" for name, ms in row["stages_ms"].items()
        )
        lines.append(start + f"{stages} | {row['bytes'] / 1000:.0f} |")
    return "\n".join(lines)
