import csv

import numpy as np
from PIL import Image

from training.recipes.scenes import LABELS, write_tiles
from training.registry import load_recipe


def test_frame_becomes_six_tiles_tagged_with_labels_of_a_hundredth_of_their_pixels(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "CamVid" / split).mkdir(parents=True)
        (tmp_path / "CamVid" / f"{split}annot").mkdir()
        mask = np.full((360, 480), LABELS.index("Sky"), np.uint8)
        mask[180:] = LABELS.index("Road")
        mask[0:18, 0:17] = LABELS.index("Pole")  # 306 of a tile's 28,800 pixels, just over a hundredth.
        mask[0:10, 160:180] = LABELS.index("Car")  # 200 pixels, less than a hundredth.
        mask[:180, 320:] = 11  # Unlabelled.
        Image.fromarray(mask).save(tmp_path / "CamVid" / f"{split}annot" / "a.png")
        Image.new("RGB", (480, 360), "grey").save(tmp_path / "CamVid" / split / "a.jpg")
    (tmp_path / "tiles").mkdir()

    write_tiles(tmp_path / "CamVid", tmp_path / "tiles")

    rows = list(csv.DictReader((tmp_path / "tiles" / "labels.csv").read_text().splitlines()))
    assert [row["tags"] for row in rows[:6]] == ["Sky Pole", "Sky", "", "Road", "Road", "Road"]
    assert [row["split"] for row in rows] == ["train"] * 6 + ["validation"] * 6
    with Image.open(tmp_path / "tiles" / "train" / "a_0.png") as tile:
        assert tile.size == (160, 180)


def test_scenes_and_camvid_share_their_data():
    assert load_recipe("scenes").source == load_recipe("camvid").source
    assert load_recipe("scenes").data.licence == load_recipe("camvid").data.licence
