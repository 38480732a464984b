import csv

import pytest

from tests.training.learners.keypoints.dots import NAMES, draw_dots


@pytest.fixture
def dots_folder(tmp_path):
    """A folder of images of three dots with their table; the first point is missing in every ninth image."""
    folder = tmp_path / "dots"
    folder.mkdir()
    rows = [("file", *(f"{name}_{axis}" for name in NAMES for axis in "xy"), "film")]
    for i in range(64):
        image, points = draw_dots(i)
        image.save(folder / f"{i:02}.png")
        cells = [f"{value:.2f}" for value in points.flatten()]
        rows.append((f"{i:02}.png", *(["", "", *cells[2:]] if i % 9 == 0 else cells), i // 4))
    with (folder / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder
