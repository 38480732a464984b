"""Photos of playing cards on a table: which of six ranks are there? Small and hard."""

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


def copy_tagged_images(found: Path, folder: Path) -> None:
    """Copies the pictures and their tags; where there are only boxes, each rank that is boxed is a tag.

    The mirror's pack has labels.csv already, the repository a row (filename, class, …) for each box in
    train_labels.csv. Raises CannotTrain.
    """
    tags = _tagged(found)
    (folder / "train").mkdir()
    for picture in image_files(found):
        if picture.stem in tags:
            shutil.copyfile(picture, folder / "train" / picture.name)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image_name", "tags"))
        writer.writerows((name, " ".join(sorted(tags[name]))) for name in sorted(tags))


def _tagged(found: Path) -> dict[str, set[str]]:
    tags: dict[str, set[str]] = defaultdict(set)
    for name, picture, labels in (("labels.csv", "image_name", "tags"), ("train_labels.csv", "filename", "class")):
        for table in sorted(found.rglob(name)):
            with table.open(newline="", encoding="utf-8-sig") as file:
                for row in csv.DictReader(file):
                    if not row.get(picture):
                        raise CannotTrain(f"{table} has a row without {picture}.")
                    tags[Path(row[picture]).stem].update((row.get(labels) or "").split())
            return tags
    raise CannotTrain(f"{found} holds neither labels.csv nor train_labels.csv.")


_OPTIONS = Options(frozen_epochs=4, smallest_crop=0.8)

RECIPE = Recipe(
    name="cards",
    task="classification",
    title="Which playing cards lie on the table?",
    summary="photos of playing cards, 6 ranks, several each, with a MobileNetV2",
    expected="micro F1 of 0.90 on held-out photos; 12 minutes on one busy CPU core",
    source=Source(
        name="playing-cards",
        # GitHub makes this archive on demand: no hash of it is published, so it is known by what it holds.
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
        description="Photos of one to several cards on a table; the tags are the ranks that are boxed in them.",
    ),
    settings=Settings(epochs=28, batch_size=16, rate=2e-3),
    options=_OPTIONS,
    on_gpu=Preset(Settings(epochs=60, batch_size=16, rate=2e-3), replace(_OPTIONS, size=320)),
    intended_use="Learning and showing how pictures with several labels are learnt from few of them.",
    out_of_scope=(
        "Games for money. Other decks, other ranks than nine to ace, cards that overlap or lie far away: it knows 296 "
        "photos of one table or two."
    ),
    caveats=(
        "59 validation photos, many of them of the same cards on the same carpet as those it was trained on: expect "
        "less of other tables.",
    ),
    min_metrics=(("micro_f1", 0.80),),
)
