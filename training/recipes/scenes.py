"""Multi-label classification of street scenes: CamVid's frames, cut into tiles with several labels each."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.recipe import DataCard, Preset, Recipe
from training.learners.classification.base import Options
from training.recipes.camvid import RECIPE as CAMVID

LABELS = CAMVID.options.labels[:-1]  # Without "Unlabelled".
_COLUMNS, _ROWS = 3, 2
_MIN_FRACTION = 0.01


def write_tiles(camvid: Path, folder: Path) -> None:
    """Write each frame's six tiles of 160×180 pixels, and labels.csv: the classes that cover at least 1 % of a tile.

    The split is the official one, since frames of one video are similar. Raises CannotTrain.
    """
    rows = []
    for part, split in (("train", "train"), ("val", "validation")):
        annotations = next(iter(sorted(camvid.rglob(f"{part}annot"))), None)
        if annotations is None:
            raise CannotTrain(f"{camvid} contains no folder {part}annot: it is not CamVid in the layout of SegNet.")
        (folder / split).mkdir()
        for annotation in sorted(annotations.glob("*.png")):
            frame = next(annotations.with_name(part).glob(annotation.stem + ".*"), None)
            if frame is None:
                raise CannotTrain(f"There is no frame for the annotation {annotation}.")
            try:
                with Image.open(frame) as image, Image.open(annotation) as mask:
                    tiles = _tiles(image.convert("RGB"), np.asarray(mask))
            except OSError as error:
                raise CannotTrain(f"{frame} or its annotation cannot be read: {error}.") from None
            for number, (tile, tags) in enumerate(tiles):
                name = f"{annotation.stem}_{number}"
                tile.save(folder / split / f"{name}.png", compress_level=1)
                rows.append((name, " ".join(tags), split))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image_name", "tags", "split"))
        writer.writerows(rows)


def _tiles(frame: Image.Image, mask: np.ndarray) -> list[tuple[Image.Image, list[str]]]:
    width, height = frame.width // _COLUMNS, frame.height // _ROWS
    tiles = []
    for top in range(0, height * _ROWS, height):
        for left in range(0, width * _COLUMNS, width):
            part = mask[top : top + height, left : left + width]
            fractions = np.bincount(part.ravel(), minlength=len(LABELS))[: len(LABELS)] / part.size
            tags = [label for label, fraction in zip(LABELS, fractions, strict=True) if fraction >= _MIN_FRACTION]
            tiles.append((frame.crop((left, top, left + width, top + height)), tags))
    return tiles


_OPTIONS = Options(frozen_epochs=2, size=192, train_size=160, min_crop_fraction=0.8)

RECIPE = Recipe(
    name="scenes",
    task="classification",
    title="What is visible in this part of a street scene?",
    summary="tiles of street scenes, 11 labels, multi-label, with a MobileNetV2",
    expected="micro F1 of 0.85 on the tiles of the official validation frames; 23 minutes on one busy CPU core",
    source=CAMVID.source,
    prepare=write_tiles,
    data=DataCard(
        name="CamVid (SegNet's version), frames of 480×360 cut into six tiles of 160×180",
        licence=CAMVID.data.licence,
        address=CAMVID.data.address,
        redistributable=False,
        description=(
            "A tile is tagged with every class that covers at least 1 % of it, except Unlabelled. The validation tiles "
            "are those of the official validation frames."
        ),
    ),
    settings=Settings(epochs=7, batch_size=32),
    options=_OPTIONS,
    on_gpu=Preset(Settings(epochs=20, batch_size=64), replace(_OPTIONS, size=224, train_size=224)),
    intended_use="Demonstrating multi-label classification; a first impression of what a street scene contains.",
    out_of_scope=(
        "Driving, or any decision about safety. Scenes unlike Cambridge by day, seen from a car, in 2007. Whole "
        "photos: it was trained on tiles, each a sixth of a frame."
    ),
    caveats=("The data is for research only, not for commercial use; the same applies to the model.",),
    cpu_caveats=("Trained on a CPU budget: tiles of 160 pixels (192 in service) and 9 epochs.",),
    min_metrics=(("micro_f1", 0.80),),
)
