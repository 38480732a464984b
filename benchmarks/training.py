"""The training loop with its loader, against the bare forward and backward pass on one batch that is there already.

What lies between the two is what Sevenfold adds: decoding, augmentation, collating, clipping, the optimiser, the
schedule, the progress bar and the checkpoint's bookkeeping.
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

_PICTURES, _BATCH = 256, 32


def measure_training(*, repeats: int) -> dict[str, Any]:
    """Pictures a second of both, in turns, and the ratio of their medians."""
    settings = Settings(epochs=1, batch_size=_BATCH)
    bare, looped = [], []
    with tempfile.TemporaryDirectory() as folder, start_runtime(settings) as runtime:
        _write_pictures(Path(folder))
        learner = ClassificationLearner(Path(folder), settings, Options(weights="none"), None)
        for turn in range(repeats):
            bare.append(_bare(learner, runtime))
            looped.append(_looped(learner, settings, runtime, Path(folder) / f"run-{turn}"))
    ratio = statistics.median(looped) / statistics.median(bare)
    what = {"network": learner.chosen.backbone, "size": learner.chosen.size, "batch": _BATCH}
    where = {"device": str(runtime.device), "precision": runtime.precision}
    return {**what, **where, "bare_per_second": bare, "loop_per_second": looped, "ratio": ratio}


def _write_pictures(folder: Path) -> None:
    """Photos' worth of decoding: 192×256 JPEGs of smooth colours, two classes."""
    generator = np.random.default_rng(0)
    for i in range(_PICTURES + _PICTURES // 4):
        path = folder / ("train" if i < _PICTURES else "valid") / f"class-{i % 2}"
        path.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(0, 256, (16, 12, 3), dtype=np.uint8))
        coarse.resize((192, 256), Image.Resampling.BICUBIC).save(path / f"{i}.jpg", quality=90)


def _bare(learner: ClassificationLearner, runtime: Runtime, steps: int = 6) -> float:
    """Pictures a second of forward, loss and backward on one batch."""
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


def _looped(learner: ClassificationLearner, settings: Settings, runtime: Runtime, folder: Path) -> float:
    """Pictures a second of an epoch by the loop, without the validation."""
    folder.mkdir()
    workers = 0 if runtime.device.type == "cpu" else 8
    (row,) = fit(learner, learner.network(), replace(settings), runtime, folder, workers=workers)
    return row.samples_per_second


def training_table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    bare, looped = (statistics.median(found[key]) for key in ("bare_per_second", "loop_per_second"))
    return "\n".join(
        [
            "| network | device | precision | bare, pictures/s | loop and loader, pictures/s | ratio |",
            "|---|---|---|---|---|---|",
            f"| {found['network']} {found['size']} | {found['device']} | {found['precision']} "
            f"| {bare:.1f} | {looped:.1f} | {found['ratio']:.2f} |",
        ]
    )
