"""Photo restoration: enlarge photos and remove text and JPEG artefacts."""

import shutil
from dataclasses import replace
from pathlib import Path

from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.recipe import DataCard, Preset, Recipe
from training.core.sources import Archive, Source
from training.data.images import image_files
from training.learners.super_resolution.dataset import TEST, TRAIN
from training.learners.super_resolution.learner import Options

_LAYOUTS = (
    # The mirror's archive, and the official archive of BSDS500, whose folder `val` is BSD100.
    ({"BSDS200": "BSDS200", "T91": "T91"}, {"BSD100": "BSD100", "Set5": "Set5/image_SRF_2"}),
    ({"BSDS200": "BSDS500/data/images/train"}, {"BSD100": "BSDS500/data/images/val"}),
)
"""The folder of each training set and of each test set in each archive; the first set is in all of them."""
_SHARP_SUFFIX = "_HR"
"""Set5 consists of pairs of files; the name of the sharp one ends with this suffix."""


def copy_sets(source: Path, folder: Path) -> None:
    """Copy the images into folders of their training and test sets; those of any other folder are for training.

    Raises CannotTrain if it is not a folder.
    """
    if not source.is_dir():
        raise CannotTrain(f"{source} is not a folder.")
    root, train, test = _find_sets(source)
    for part, sets in ((TRAIN, train), (TEST, test)):
        for name, path in sets.items():
            files = image_files(root / path)
            sharp = [file for file in files if file.stem.endswith(_SHARP_SUFFIX)] if part == TEST else []
            for file in sharp or files:
                target = folder / part / name / file.relative_to(root / path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def _find_sets(source: Path) -> tuple[Path, dict[str, str], dict[str, str]]:
    """Return the folder with the sets, which may be the only one in an archive, and the path of each set in it."""
    for root in (source, *sorted(path for path in source.iterdir() if path.is_dir())):
        for layout in _LAYOUTS:
            train, test = ({name: path for name, path in sets.items() if (root / path).is_dir()} for sets in layout)
            if next(iter(layout[0])) in train:
                return root, train, test
    return source, {"images": "."}, {}


_OPTIONS = Options(crops_per_image=8, pixel_epochs=5, blocks=4)

RECIPE = Recipe(
    name="restore",
    task="super_resolution",
    title="The same image at twice the size, without text and JPEG artefacts",
    summary="images at twice the size without artefacts, with a U-Net over a MobileNetV2",
    expected="PSNR 1.9 dB above bicubic resizing on its validation images; 20 to 40 minutes on a CPU core",
    source=Source(
        name="superres",
        # GitHub creates this archive on demand, so that its hash is not stable: it is checked by its content.
        official=Archive("https://github.com/BIDS/BSDS500/archive/refs/heads/master.zip"),
        mirrored=Archive(
            "superres/superres_train_test.tgz",
            "8eac4f941e9715772ed39d644bfc751d082a736d127cbc689a066dba045eafa3",
            33860065,
        ),
        contains=("100075.jpg", "101085.jpg"),
    ),
    data=DataCard(
        name="BSDS200 and T91; evaluated on BSD100 and Set5",
        licence="research use only",
        address="https://github.com/BIDS/BSDS500",
        description="Photos of the Berkeley segmentation data set and a collection of 91 small images, the usual "
        "training sets of super-resolution. The official archive lacks T91 and Set5: then the 200 others are used.",
    ),
    settings=Settings(epochs=7, batch_size=8, rate=1.5e-3, precision="fp32"),
    options=_OPTIONS,
    on_gpu=Preset(
        Settings(epochs=60, batch_size=32, rate=1.5e-3),
        replace(
            _OPTIONS,
            backbone="resnet34",
            width=64,
            blocks=12,
            crop_size=96,
            crops_per_image=16,
            pixel_epochs=45,
            text_fraction=0.8,
        ),
    ),
    prepare=copy_sets,
    intended_use="Enlarging one's own small, compressed or captioned images for viewing.",
    out_of_scope=(
        "Identifying people or number plates, medicine, science, evidence of any kind: the added detail is invented. "
        "Removing watermarks, signatures and copyright marks from other people's images."
    ),
    caveats=(
        "Trained on images that are for research only: read their terms before any other use.",
        "Text and JPEG artefacts are synthetic: one typeface, drawn upright. Handwriting and logos are not covered, "
        "and text that belongs to the scene may be removed as well.",
    ),
    cpu_caveats=(
        "Trained on a CPU budget: few images, small crops, a small network. See `docs/gpu.md` for the settings on a "
        "GPU.",
    ),
    min_metrics=(
        ("psnr_gain", 1.0),
        ("text_psnr_gain", 4.0),
        ("clean_psnr_gain", 0.0),
        ("distance_gain", 0.0),
    ),
)
