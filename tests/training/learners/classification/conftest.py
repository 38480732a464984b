import csv

import numpy as np
import pytest
from PIL import Image

TAGS = ("left", "right", "left right", "")


@pytest.fixture
def tagged_folder(tmp_path):
    """Writes labels.csv and an image per row; its left half is bright for the tag left, its right half for right."""

    def write(rows, columns=("image_name", "tags")):
        folder = tmp_path / "planet"
        (folder / "images").mkdir(parents=True)
        generator = np.random.default_rng(0)
        for name, tags, *_ in rows:
            pixels = generator.normal(60, 20, (32, 40, 3))
            pixels[:, :20] += 150 * ("left" in tags.split())
            pixels[:, 20:] += 150 * ("right" in tags.split())
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{name}.png")
        with (folder / "labels.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)
        return folder

    return write


@pytest.fixture
def tag_rows():
    """Makes rows of labels.csv in which each combination of tags is equally frequent."""
    return lambda count=24: [(f"p{i:02}", TAGS[i % 4]) for i in range(count)]
