"""Photos of playing cards on a table: which of six ranks are visible? A small and hard data set."""

import csv
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.recipe import DataCard, Preset, Recipe
from training.core.sources import Archive, Source
from training.data.images import image_files
from training.learners.classification.base import Options

_ADDRESS = (
    "https://github.com/EdjeElectronics/TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10"
)


def copy_tagged_images(source: Path, folder: Path) -> None:
    """Copy the images and write their tags: from labels.csv, or the ranks with a bounding box in train_labels.csv.

    The archive on the mirror has labels.csv; the original repository has train_labels.csv, with a row (filename,
    class, …) per bounding box. Raises CannotTrain.
    """
    tags = _read_tags(source)
    (folder / "train").mkdir()
    for image in image_files(source):
        if image.stem in tags:
            shutil.copyfile(image, folder / "train" / image.name)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image_name", "tags"))
        writer.writerows((name, " ".join(sorted(tags[name]))) for name in sorted(tags))


def _read_tags(source: Path) -> dict[str, set[str]]:
    tags: dict[str, set[str]] = defaultdict(set)
    for name, image_column, label_column in (
        ("labels.csv", "image_name", "tags"),
        ("train_labels.csv", "filename", "class"),
    ):
        for table in sorted(source.rglob(name)):
            with table.open(newline="", encoding="utf-8-sig") as file:
                for row in csv.DictReader(file):
                    if not row.get(image_column):
                        raise CannotTrain(f"{table} has a row without {image_column}.")
                    tags[Path(row[image_column]).stem].update((row.get(label_column) or "").split())
            return tags
    raise CannotTrain(f"{source} contains neither labels.csv nor train_labels.csv.")


_OPTIONS = Options(frozen_epochs=4, min_crop_fraction=0.8)

RECIPE = Recipe(
    name="cards",
    task="classification",
    title="Which playing cards lie on the table?",
    summary="photos of playing cards, 6 ranks, multi-label, with a MobileNetV2",
    expected="micro F1 of 0.89 on held-out photos; 12 minutes on one busy CPU core",
    source=Source(
        name="playing-cards",
        # GitHub creates this archive on demand, so that its hash is not stable: it is checked by its content.
        official=Archive(_ADDRESS + "/archive/refs/heads/master.zip"),
        mirrored=Archive(
            "multilabel/playing-cards.tgz",
            "a71230afa6bed4e017084d9ff086eba787008fe99e705763849676d80a216ac9",
            6_996_917,
        ),
        contains=("*labels.csv", "IMG_2386.*"),
    ),
    prepare=copy_tagged_images,
    data=DataCard(
        name="Playing cards, Evan Juras (EdjeElectronics)",
        licence="Apache-2.0",
        address=_ADDRESS,
        redistributable=True,
        description="Photos of one or more cards on a table; the tags are the ranks with a bounding box.",
    ),
    settings=Settings(epochs=28, batch_size=16, rate=2e-3),
    options=_OPTIONS,
    on_gpu=Preset(Settings(epochs=60, batch_size=16, rate=2e-3), replace(_OPTIONS, size=320)),
    intended_use="Learning and demonstrating multi-label classification with few images.",
    out_of_scope=(
        "Games for money. Other decks, ranks other than nine to ace, cards that overlap or are far away: it was "
        "trained on 296 photos of one or two tables."
    ),
    caveats=(
        "The 59 validation photos show mostly the same cards on the same carpet as the training photos: expect lower "
        "accuracy elsewhere.",
    ),
    min_metrics=(("micro_f1", 0.80),),
)
