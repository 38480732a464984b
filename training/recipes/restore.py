"""Photos made smaller, drawn over with text and squeezed by JPEG, and how they were before."""

from dataclasses import replace

from training.core.config import Settings
from training.core.recipe import DataCard, Preset, Recipe
from training.core.sources import Archive, Source
from training.learners.super_resolution.learner import Options

_OPTIONS = Options(crops=8, pixel_epochs=5, blocks=4)

RECIPE = Recipe(
    name="restore",
    task="super_resolution",
    title="The same picture, twice the size, without text and JPEG traces",
    summary="pictures made twice as large and cleaner, with a U-Net over a MobileNetV2",
    expected="1.9 dB above bicubic resizing on its validation pictures; 20 to 40 minutes on a CPU core",
    source=Source(
        name="superres",
        # GitHub makes this archive on demand: no hash of it is published, so it is known by what it holds.
        official=Archive("https://github.com/BIDS/BSDS500/archive/refs/heads/master.zip"),
        mirrored=Archive(
            "superres/superres_train_test.tgz",
            "8eac4f941e9715772ed39d644bfc751d082a736d127cbc689a066dba045eafa3",
            33860065,
        ),
        contains=("100075.jpg", "101085.jpg"),
    ),
    data=DataCard(
        name="BSDS200 and T91; judged on BSD100 and Set5",
        licence="research use only",
        address="https://github.com/BIDS/BSDS500",
        description="Photos of the Berkeley segmentation data set and a collection of 91 small pictures, the usual "
        "ones to train super-resolution on. The official archive has no T91 and no Set5: it trains on the 200 others.",
    ),
    settings=Settings(epochs=7, batch_size=8, rate=1.5e-3, precision="fp32"),
    options=_OPTIONS,
    on_gpu=Preset(
        Settings(epochs=60, batch_size=32, rate=1.5e-3),
        replace(_OPTIONS, backbone="resnet34", width=64, blocks=12, crop=96, crops=16, pixel_epochs=45, text=0.8),
    ),
    intended_use="Making small, compressed or captioned pictures of one's own pleasant to look at in a larger size.",
    out_of_scope=(
        "Identifying people or number plates, medicine, science, evidence of any kind: what it adds is invented. "
        "Removing watermarks, signatures and copyright marks from the pictures of others."
    ),
    caveats=(
        "Trained on pictures that are for research only: see their terms before any other use.",
        "Text and JPEG traces are synthetic: one typeface, drawn upright. Handwriting, logos and text that belongs to "
        "the scene are another matter: it may remove the last as well.",
    ),
    cpu_caveats=(
        "Trained with what a CPU affords: few pictures, small crops, a small network. `docs/gpu.md` says what a GPU "
        "leaves room for.",
    ),
    min_metrics=(
        ("psnr_gain", 1.0),
        ("text_psnr_gain", 4.0),
        ("clean_psnr_gain", 0.0),
        ("distance_gain", 0.0),
    ),
)
