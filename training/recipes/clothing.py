"""Photos of clothes in ten classes: T-shirt, long sleeve, pants, shoes, shirt, dress, outwear, shorts, hat, skirt."""

from dataclasses import replace

from training.core.config import Settings
from training.core.recipe import DataCard, Preset, Recipe
from training.core.sources import Archive, Source
from training.learners.classification.base import Options

_OPTIONS = Options(frozen_epochs=2, train_size=192)

RECIPE = Recipe(
    name="clothing",
    task="classification",
    title="Which piece of clothing is in this photo?",
    summary="photos of clothes, 10 classes, with a MobileNetV2",
    expected="accuracy 0.92 on its validation folder; 25 to 35 minutes on 2 CPU cores",
    source=Source(
        name="clothing-dataset-small",
        # GitHub creates this archive on demand, so that its hash is not stable: it is checked by its content.
        official=Archive("https://github.com/alexeygrigorev/clothing-dataset-small/archive/refs/heads/master.zip"),
        mirrored=Archive(
            "classification/clothing-dataset-small.tgz",
            "9b606a18c0a4beae4bc112e9ab30ee552a36567d72d8ae976fc1169d04de21c7",
            37_433_772,
        ),
        contains=("train/t-shirt", "validation/t-shirt"),
    ),
    data=DataCard(
        name="Clothing dataset (small), Alexey Grigorev and contributors",
        licence="CC0-1.0",
        address="https://github.com/alexeygrigorev/clothing-dataset-small",
        redistributable=True,
        description="Photos taken by volunteers of their own clothes, most of them lying on a floor, a bed or a table.",
    ),
    settings=Settings(epochs=10, batch_size=32),
    options=_OPTIONS,
    on_gpu=Preset(Settings(epochs=20, batch_size=64), replace(_OPTIONS, train_size=224)),
    intended_use="Sorting photos of single garments, such as a wardrobe or the listings of a second-hand shop.",
    out_of_scope=(
        "Photos of people, outfits of several garments, brands, sizes or colours; any judgement of a person. "
        "It always returns one of its ten classes, even if the photo shows none of them."
    ),
    cpu_caveats=(
        "Trained on a CPU budget: images of 192 pixels (224 in service) and 12 epochs. See `docs/gpu.md` for the "
        "settings on a GPU.",
    ),
    min_metrics=(("accuracy", 0.90),),
)
