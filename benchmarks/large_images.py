"""Photos of 12 megapixels: the service, which decodes a JPEG at a fraction of its size, and a plain endpoint.

The plain endpoint decodes the whole photo and scales it down, as most do. Both run the same graph, and take turns.
"""

import io
import json
import statistics
import subprocess
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.load import measure_load
from benchmarks.serving import example_request, newest_version, predict_path, start_plain
from loadtests.clients import LoadProcess, prepare_request
from loadtests.server import start_server
from tests.faults.process_tree import tree_cpu_s

MODEL = "clothing"
_CONNECTIONS = (1, 8)
_CPU_REQUESTS = 20
_SIZE = (4000, 3000)
_NOISE = {"smooth": 0.0, "usual": 3.0, "noisy": 6.0}
"""Standard deviation of the noise, in levels of 255. It decides how large the file is, and with it the time that
decoding takes at any scale, since all of a file has to be read."""


@dataclass(frozen=True)
class Row:
    """A row of the table: one photo, at one number of connections.

    Attributes:
        photo: its kind.
        megabytes: the size of its file.
        plain: requests per second of the plain endpoint, one value a turn.
        service: the same for the service.
        plain_cpu_s: processor time of the plain endpoint for a request, on all cores together. Other programs on the
            machine change it less than the rate.
        service_cpu_s: the same for the service and its processes.
        difference: the largest difference between the probabilities of both answers.
    """

    photo: str
    megabytes: float
    connections: int
    plain: list[float]
    service: list[float]
    plain_cpu_s: float
    service_cpu_s: float
    difference: float

    @property
    def ratios(self) -> list[float]:
        """Service ÷ plain endpoint, one value a turn."""
        return [service / plain for service, plain in zip(self.service, self.plain, strict=True)]


def make_photo(content: bytes, noise: float) -> bytes:
    """Return a JPEG of 12 megapixels with the content of an image file and Gaussian noise of this deviation."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB").resize(_SIZE, Image.Resampling.BICUBIC))
    # Noise of a sensor has no colour of its own once the camera has interpolated and smoothed it.
    levels = np.random.default_rng(0).normal(0, noise, pixels.shape[:2])[..., np.newaxis]
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + levels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def measure_large_images(models: Path, *, seconds: float, repeats: int) -> dict[str, Any]:
    """Measure both endpoints with both photos, at 1 and 8 connections. Raises RuntimeError if a request fails."""
    folder = newest_version(models / MODEL)
    content_type, example = example_request(folder, MODEL)
    rows = []
    with (
        LoadProcess() as process,
        start_server(models.resolve(), "--only", MODEL, stderr=subprocess.DEVNULL) as (service_process, service),
        start_plain(folder, "--full-size") as (plain_process, plain),
    ):
        for photo, noise in _NOISE.items():
            content = make_photo(example, noise)
            difference = _largest_difference(
                _predict(plain, "/predict", content_type, content),
                _predict(service, predict_path(MODEL), content_type, content),
            )
            plain_cpu = _cpu_seconds(plain_process.pid, partial(_predict, plain, "/predict", content_type, content))
            predict = partial(_predict, service, predict_path(MODEL), content_type, content)
            service_cpu = _cpu_seconds(service_process.pid, predict)
            to_plain = prepare_request("/predict", content_type, content)
            to_service = prepare_request(predict_path(MODEL), content_type, content)
            for connections in _CONNECTIONS:
                measure = partial(measure_load, process, connections=connections, seconds=seconds)
                turns = [(measure(plain, to_plain), measure(service, to_service)) for _ in range(repeats)]
                plain_rates = [load.per_second for load, _ in turns]
                service_rates = [load.per_second for _, load in turns]
                rates, cpu = (plain_rates, service_rates), (plain_cpu, service_cpu)
                rows.append(Row(photo, len(content) / 1e6, connections, *rates, *cpu, difference))
    return {"rows": [asdict(row) | {"ratio": statistics.median(row.ratios)} for row in rows]}


def _predict(port: int, path: str, content_type: str, body: bytes) -> dict[str, float]:
    """Return the probabilities of the labels."""
    url, headers = f"http://127.0.0.1:{port}{path}", {"Content-Type": content_type}
    request = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 -- http, a server of our own.
        labels = json.load(response)["labels"]
    return {entry["label"]: entry["probability"] for entry in labels}


def _cpu_seconds(pid: int, predict: Callable[[], object]) -> float:
    """Return the processor time of a request: of a process and all that it has started."""
    before = tree_cpu_s(pid)
    for _ in range(_CPU_REQUESTS):
        predict()
    return (tree_cpu_s(pid) - before) / _CPU_REQUESTS


def _largest_difference(left: dict[str, float], right: dict[str, float]) -> float:
    return max(abs(left[label] - right[label]) for label in left.keys() & right.keys())


def large_images_table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| photo of 12 megapixels | connections | service, 1/s | plain, 1/s | service ÷ plain | turns | service, "
        "CPU ms | plain, CPU ms | plain ÷ service | largest difference of a probability |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        ratios = [service / plain for service, plain in zip(row["service"], row["plain"], strict=True)]
        lines.append(
            f"| {row['photo']}, {row['megabytes']:.1f} MB | {row['connections']} | "
            f"{statistics.median(row['service']):.1f} | {statistics.median(row['plain']):.1f} | {row['ratio']:.2f} | "
            f"{min(ratios):.2f} to {max(ratios):.2f} | {row['service_cpu_s'] * 1e3:.0f} | "
            f"{row['plain_cpu_s'] * 1e3:.0f} | {row['plain_cpu_s'] / row['service_cpu_s']:.2f} | "
            f"{row['difference']:.4f} |"
        )
    return "\n".join(lines)
