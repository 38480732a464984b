"""Tables of keypoints with their images."""

import csv

from tests.training.conftest import draw_image

HEADER = ("file", "left_x", "left_y", "right_x", "right_y")


def write_table(folder, rows, header=HEADER):
    folder.mkdir(exist_ok=True)
    with (folder / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return folder


def write_images(folder, count, **options):
    """Writes images of 48×40 pixels, and a table with two points in each."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        draw_image((90, 120, 30), i).save(folder / f"{i}.png")
    return write_table(folder, [(f"{i}.png", 10 + i, 20, 30, 20.5) for i in range(count)], **options)
