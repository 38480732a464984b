"""What there is to see in parts of street scenes: the frames of CamVid, cut into tiles with several labels each."""

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

LABELS = CAMVID.options.labels[:-1]  # Less what is unlabelled.
_ACROSS, _DOWN = 3, 2
_MIN_FRACTION = 0.01


def write_tiles(camvid: Path, folder: Path) -> None:
    """Writes each frame's six tiles of 160×180 pixels and labels.csv: the classes that cover 1 % of a tile, or more.

    The split is the official one: frames of one film resemble each other. Raises CannotTrain.
    """
    rows = []
    for part, split in (("train", "train"), ("val", "validation")):
        pictures = next(iter(sorted(camvid.rglob(f"{part}annot"))), None)
        if pictures is None:
            raise CannotTrain(f"{camvid} holds no folder {part}annot: it is not CamVid in the layout of SegNet.")
        (folder / split).mkdir()
        for annotation in sorted(pictures.glob("*.png")):
            frame = next(pictures.with_name(part).glob(annotation.stem + ".*"), None)
            if frame is None:
                raise CannotTrain(f"{annotation} is the annotation of a frame that is not there.")
            try:
                with Image.open(frame) as picture, Image.open(annotation) as mask:
                    tiles = _tiles(picture.convert("RGB"), np.asarray(mask))
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
    width, height = frame.width // _ACROSS, frame.height // _DOWN
    tiles = []
    for top in range(0, height * _DOWN, height):
        for left in range(0, width * _ACROSS, width):
            part = mask[top : top + height, left : left + width]
            shares = np.bincount(part.ravel(), minlength=len(LABELS))[: len(LABELS)] / part.size
            tags = [label for label, share in zip(LABELS, shares, strict=True) if share >= _MIN_FRACTION]
            tiles.append((frame.crop((left, top, left + width, top + height)), tags))
    return tiles


_OPTIONS = Options(frozen_epochs=2, size=192, train_size=160, smallest_crop=0.8)

RECIPE = Recipe(
    name="scenes",
    task="classification",
    title="What is there to see in this part of a street scene?",
    summary="tiles of street scenes, 11 labels, several each, with a MobileNetV2",
    expected="micro F1 of 0.85 on the tiles of the official validation frames; 23 minutes on one busy CPU core",
    source=CAMVID.source,
    prepare=write_tiles,
    data=DataCard(
        name="CamVid (SegNet's version), frames of 480×360 cut into six tiles of 160×180",
        licence=CAMVID.data.licence,
        address=CAMVID.data.address,
        redistributable=False,
        description=(
            "A tile is tagged with every class that covers at least 1 % of it; what is unlabelled is no class. "
            "The validation tiles are those of the official validation frames."
        ),
    ),
    settings=Settings(epochs=7, batch_size=32),
    options=_OPTIONS,
    on_gpu=Preset(Settings(epochs=20, batch_size=64), replace(_OPTIONS, size=224, train_size=224)),
    intended_use="Showing how pictures with several labels are learnt; a first look at what a street scene holds.",
    out_of_scope=(
        "Driving, or any decision about safety. Scenes unlike Cambridge by day, seen from a car, in 2007. "
        "Whole photos of other places: it was trained on tiles, a sixth of a frame each."
    ),
    caveats=("The data may be used for research only, not commercially; so should the model be.",),
    cpu_caveats=("Trained with what a CPU affords: tiles of 160 pixels (192 when it is asked) and 9 epochs.",),
    min_metrics=(("micro_f1", 0.80),),
)
