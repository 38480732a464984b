"""The training loop with its data loader, compared with the bare forward and backward pass on one batch in memory.

The difference is what Sevenfold adds: decoding, augmentation, collating, clipping, the optimiser, the schedule, the
progress bar and checkpointing.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from training.core.config import Settings
from training.engine.loop import fit
from training.engine.runtime import Runtime, start_runtime
from training.learners.classification.base import Options
from training.learners.classification.learner import ClassificationLearner

_IMAGES, _BATCH = 256, 32


def measure_training(*, repeats: int) -> dict[str, Any]:
    """Measure images per second of both, in turn, and the ratio of the medians."""
    settings = Settings(epochs=1, batch_size=_BATCH)
    bare, looped = [], []
    with tempfile.TemporaryDirectory() as folder, start_runtime(settings) as runtime:
        _write_images(Path(folder))
        learner = ClassificationLearner(Path(folder), settings, Options(weights="none"), None)
        for turn in range(repeats):
            bare.append(_bare(learner, runtime))
            looped.append(_full_loop(learner, settings, runtime, Path(folder) / f"run-{turn}"))
    ratio = statistics.median(looped) / statistics.median(bare)
    network = {"network": learner.options.backbone, "size": learner.options.size, "batch": _BATCH}
    machine = {"device": str(runtime.device), "precision": runtime.precision}
    return {**network, **machine, "bare_per_second": bare, "loop_per_second": looped, "ratio": ratio}


def _write_images(folder: Path) -> None:
    """Write JPEGs of 192×256 smooth colours in two classes: they cost as much to decode as photos."""
    generator = np.random.default_rng(0)
    for i in range(_IMAGES + _IMAGES // 4):
        path = folder / ("train" if i < _IMAGES else "valid") / f"class-{i % 2}"
        path.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (16, 12, 3), dtype=np.uint8))
        coarse.resize((192, 256), Image.Resampling.BICUBIC).save(path / f"{i}.jpg", quality=90)


def _bare(learner: ClassificationLearner, runtime: Runtime, steps: int = 6) -> float:
    """Return images per second of forward pass, loss and backward pass on one batch."""
    network = learner.network().to(runtime.device).train()
    batch = runtime.to_device(learner.samples.__getitems__([(0, i) for i in range(_BATCH)]))

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with runtime.autocast():
            value = learner.loss(network, batch)
        value.backward()  # type: ignore[no-untyped-call]
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()

    step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * _BATCH / (time.perf_counter() - began)


def _full_loop(learner: ClassificationLearner, settings: Settings, runtime: Runtime, folder: Path) -> float:
    """Return images per second of one epoch of the loop, without validation."""
    folder.mkdir()
    workers = 0 if runtime.device.type == "cpu" else 8
    (row,) = fit(learner, learner.network(), replace(settings), runtime, folder, workers=workers)
    return row.samples_per_second


def training_table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    bare, looped = (statistics.median(results[key]) for key in ("bare_per_second", "loop_per_second"))
    return "\n".join(
        [
            "| network | device | precision | bare, images/s | loop and loader, images/s | ratio |",
            "|---|---|---|---|---|---|",
            f"| {results['network']} {results['size']} | {results['device']} | {results['precision']} "
            f"| {bare:.1f} | {looped:.1f} | {results['ratio']:.2f} |",
        ]
    )
