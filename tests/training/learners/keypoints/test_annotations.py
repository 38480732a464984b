import re

import numpy as np
import pytest
from PIL import Image

from tests.training.conftest import draw_image
from tests.training.learners.keypoints.tables import HEADER, write_images, write_table
from training.core.errors import CannotTrain
from training.learners.keypoints.annotations import TableRules, read_keypoints


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (HEADER, ("left", "right")),
        (("file", "left.x", "left.y", "right X", "right Y"), ("left", "right")),
        (("", "0", "1", "2", "3"), ("point_1", "point_2")),
    ],
)
def test_points_are_named_by_the_header_or_numbered(tmp_path, header, names):
    data = read_keypoints(write_images(tmp_path / "d", 3, header=header), TableRules())

    assert data.names == names
    assert data.images[1].points.tolist() == [[11.0, 20.0], [30.0, 20.5]]


def test_names_can_be_given_for_a_header_without_names(tmp_path):
    folder = write_images(tmp_path / "d", 3, header=("", "0", "1", "2", "3"))

    assert read_keypoints(folder, TableRules(names=("eye", "ear"))).names == ("eye", "ear")
    with pytest.raises(CannotTrain, match="has 2 points, but --names has 3 names"):
        read_keypoints(folder, TableRules(names=("a", "b", "c")))


def test_data_may_be_the_table_itself_and_spaces_and_empty_lines_are_ignored(tmp_path):
    folder = write_images(tmp_path / "d", 3)
    (folder / "points.csv").write_text("file, left_x, left_y\n\n0.png, 1 , 2\n1.png,,\n 2.png,5,6\n\n")

    data = read_keypoints(folder / "points.csv", TableRules())

    assert len(data.images) == 2
    assert "1 images left out: they have no points." in data.warnings


def test_empty_cells_are_missing_points(tmp_path):
    folder = write_images(tmp_path / "d", 3)
    write_table(folder, [("0.png", "", "", 1, 2), ("1.png", 3, 4, "NaN", "nan"), ("2.png", 5, 6, 7, 8)])

    data = read_keypoints(folder, TableRules())

    assert [np.isnan(image.points).any(axis=1).tolist() for image in data.images] == [
        [True, False],
        [False, True],
        [False, False],
    ]


def test_groups_come_from_a_column_or_a_pattern(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("ann_1.png", "ann_2.png", "bob_1.png"):
        draw_image((90, 20, 30), len(name)).save(folder / name)
    rows = [("ann_1.png", 1, 2, 7), ("ann_2.png", 1, 2, 7), ("bob_1.png", 1, 2, 8)]
    write_table(folder, rows, header=("file", "nose_x", "nose_y", "film"))

    by_column = read_keypoints(folder, TableRules(group_column="film"))
    write_table(folder, [row[:3] for row in rows], header=("file", "nose_x", "nose_y"))
    by_pattern = read_keypoints(folder, TableRules(group_pattern=r"^(.+)_\d"))

    assert [image.group for image in by_column.images] == ["7", "7", "8"]
    assert [image.group for image in by_pattern.images] == ["ann", "ann", "bob"]
    assert by_column.has_groups
    assert by_pattern.has_groups


def test_copies_of_an_image_form_a_group_by_default(tmp_path):
    folder = write_images(tmp_path / "d", 3)
    Image.open(folder / "0.png").save(folder / "2.png")

    data = read_keypoints(folder, TableRules())

    groups = [image.group for image in data.images]
    assert groups[0] == groups[2] != groups[1]
    assert not data.has_groups


def test_each_table_may_have_its_own_image_folder(tmp_path):
    (tmp_path / "all").mkdir()
    for part in ("one", "two"):
        write_images(tmp_path / "all" / part, 2)
        (tmp_path / "all" / part / "points.csv").rename(tmp_path / "all" / f"{part}.csv")

    data = read_keypoints(tmp_path, TableRules(tables=("one.csv", "two.csv"), image_folders=("one", "two")))

    assert [image.path.parent.name for image in data.images] == ["one", "one", "two", "two"]


INVALID_TABLES = [
    ([("0.png", 1, 2, 3, 4), ("9.png", 1, 2, 3, 4)], {}, "row 3 names the image '9.png', but there is no file"),
    ([("0.png", 1, 2, 3, 4), ("0.png", 1, 2, 3, 4)], {}, r"lists 0\.png, which is already listed in .*row 2"),
    ([("0.png", 1, 2, 3, "four")], {}, "row 2: the y of 'right' is 'four', which is not a number"),
    ([("0.png", 1, 2, 3, "inf")], {}, "is 'inf', which is not a number"),
    ([("0.png", 1, 2, 3, "")], {}, "'right' has only one coordinate"),
    ([("0.png", 1, 2, 3)], {}, "row 2 has 4 cells, but the header has 5"),
    ([("0.png", 1, 2, 48.5, 4)], {}, r"the point \(48.5, 4\) lies outside its image of 48×40 pixels\. .*--outside"),
    ([("0.png", 1, 2, -0.1, 4)], {}, "lies outside its image"),
    ([("", 1, 2, 3, 4)], {}, "names the image ''"),
    ([], {}, "has no rows below its header"),
    ([("0.png", 1, 2)], {"header": ("file", "a_x", "a_z")}, "'a_x' has no partner with the y of the same point"),
    ([("0.png", 1, 2, 3)], {"header": ("file", "a_x", "a_y", "b_x")}, "'b_x' has no partner with the y"),
    ([("0.png",)], {"header": ("file",)}, "has 0 columns of coordinates"),
    ([("0.png", 1, 2, 3, 4)], {"header": ("file", "a_x", "a_y", "a_x", "a_y")}, "two columns named 'a_x'"),
    ([("0.png", 1, 2, 3, 4)], {"header": ("file", "a_x", "a_y", "a x", "a y")}, r"two points are named 'a' \('a_x' and 'a x'\)"),
    ([("0.png", 1, 2, "", ""), ("1.png", 1, 2, "", "")], {}, "The point 'right' is missing in every image"),
    ([("0.png", 1, 2, 3, 4)], {}, "images of only one group"),
]


@pytest.mark.parametrize(
    ("rows", "options", "message"), INVALID_TABLES, ids=[message[:40] for _, _, message in INVALID_TABLES]
)
def test_invalid_table_is_refused_with_a_message(tmp_path, rows, options, message):
    folder = write_images(tmp_path / "d", 3)
    write_table(folder, rows, **options)

    with pytest.raises(CannotTrain, match=message):
        read_keypoints(folder, TableRules())


def test_invalid_rules_and_files_are_refused_with_a_message(tmp_path):
    folder = write_images(tmp_path / "d", 3)
    (tmp_path / "empty").mkdir()
    mistakes = [
        (tmp_path / "empty", TableRules(), "contains 0 CSV files; exactly one"),
        (folder, TableRules(tables=("other.csv",)), "contains 0 files 'other.csv'"),
        (folder, TableRules(group_column="film"), "no column 'film' for --group-column"),
        (folder, TableRules(group_pattern="("), "--group-pattern is not a valid regular expression"),
        (folder, TableRules(group_pattern="person"), "--group-pattern does not match '0.png'"),
        (folder, TableRules(image_folders=("a", "b")), "--image-folders names 2 folders for 1 tables"),
    ]
    for data, rules, message in mistakes:
        with pytest.raises(CannotTrain, match=re.escape(message)):
            read_keypoints(data, rules)
    (folder / "more.csv").write_text("file,left_x,left_y\n1.png,1,1\n")
    with pytest.raises(CannotTrain, match=r"contains 2 CSV files.*--tables"):
        read_keypoints(folder, TableRules())
    with pytest.raises(CannotTrain, match="other points than the table before"):
        read_keypoints(folder, TableRules(tables=("points.csv", "more.csv")))
    (folder / "1.png").write_bytes(b"not an image")
    with pytest.raises(CannotTrain, match=r"1\.png cannot be read"):
        read_keypoints(folder / "points.csv", TableRules())
    assert len(read_keypoints(folder / "points.csv", TableRules(unreadable="skip")).images) == 2
    (folder / "points.csv").write_bytes(b"file,a_x,a_y\n\xff\xfe,1,2\n")
    with pytest.raises(CannotTrain, match="cannot be read as a CSV file"):
        read_keypoints(folder / "points.csv", TableRules())


@pytest.mark.parametrize(("outside", "points"), [("clip", [[48.0, 4.0]]), ("drop", [[np.nan, np.nan]])])
def test_points_outside_the_image_can_be_clipped_or_dropped(tmp_path, outside, points):
    folder = write_images(tmp_path / "d", 3)
    write_table(folder, [("0.png", 1, 2, 60, 4), ("1.png", 1, 2, 3, 4), ("2.png", 5, 2, 3, 4)])

    data = read_keypoints(folder, TableRules(outside=outside))

    assert np.array_equal(data.images[0].points[1:], points, equal_nan=True)
    assert data.warnings[0].startswith("1 points")
