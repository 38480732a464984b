import gzip
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
    (
        [("0.png", 1, 2, 3, 4)],
        {"header": ("file", "a_x", "a_y", "a x", "a y")},
        r"two points are named 'a' \('a_x' and 'a x'\)",
    ),
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
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "annotations.json").write_text("{}")
    mistakes = [
        (tmp_path / "empty", TableRules(), "contains 0 CSV files; exactly one"),
        (
            tmp_path / "coco",
            TableRules(),
            "JSON, such as COCO's, is not read (annotations.json): convert it. Each row of",
        ),
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
    with pytest.raises(CannotTrain, match=r"is not UTF-8 \(line 2\)"):
        read_keypoints(folder / "points.csv", TableRules())


@pytest.mark.parametrize(("outside", "points"), [("clip", [[48.0, 4.0]]), ("drop", [[np.nan, np.nan]])])
def test_points_outside_the_image_can_be_clipped_or_dropped(tmp_path, outside, points):
    folder = write_images(tmp_path / "d", 3)
    write_table(folder, [("0.png", 1, 2, 60, 4), ("1.png", 1, 2, 3, 4), ("2.png", 5, 2, 3, 4)])

    data = read_keypoints(folder, TableRules(outside=outside))

    assert np.array_equal(data.images[0].points[1:], points, equal_nan=True)
    assert data.warnings[0].startswith("1 points")


def write_lines(folder, *lines, count=4):
    """Writes images of 48×40 pixels, 0.png to 3.png, and a table with these lines."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        draw_image((90, 120, 30), i).save(folder / f"{i}.png")
    (folder / "points.csv").write_text("\n".join(lines) + "\n")
    return folder


POINTS = [[10.0, 20.0], [30.0, 25.0]]
ROWS = ("0.png,10,20,30,25", "1.png,11,20,30,25")


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("image,x1,y1,x2,y2", ("point_1", "point_2")),
        ("image,1x,1y,2x,2y", ("point_1", "point_2")),
        ("image,p1x,p1y,p2x,p2y", ("p1", "p2")),
        ("image,x_nose,y_nose,x_ear,y_ear", ("nose", "ear")),
        ("image,noseX,noseY,earX,earY", ("nose", "ear")),
        ("image,nose (x),nose (y),ear (x),ear (y)", ("nose", "ear")),
        ("image,X [nose],Y [nose],X [ear],Y [ear]", ("nose", "ear")),
        ("image,Nose-X,nose-y,ear:x,Ear:Y", ("Nose", "ear")),
        ("image,mark_x_0,mark_y_0,mark_x_1,mark_y_1", ("mark_0", "mark_1")),
        ("image,left_x1,left_y1,left_x2,left_y2", ("left_1", "left_2")),
        ("image,x,y,x.1,y.1", ("point", "point_1")),
    ],
)
def test_every_usual_way_to_name_columns_is_paired_by_name_without_a_word(tmp_path, header, names):
    data = read_keypoints(write_lines(tmp_path / "d", header, *ROWS, count=2), TableRules())

    assert data.names == names
    assert data.images[0].points.tolist() == POINTS
    assert data.warnings == ()


@pytest.mark.parametrize(
    ("header", "cells", "pairs"),
    [
        ("image,x1,x2,y1,y2", "10,30,20,25", "point_1 = (x1, y1), point_2 = (x2, y2)"),
        ("image,nose_y,nose_x,ear_y,ear_x", "20,10,25,30", "nose = (nose_x, nose_y), ear = (ear_x, ear_y)"),
        ("image,nose_x,ear_x,ear_y,nose_y", "10,30,25,20", "nose = (nose_x, nose_y), ear = (ear_x, ear_y)"),
    ],
)
def test_columns_in_another_order_are_paired_by_name_with_a_sentence(tmp_path, header, cells, pairs):
    folder = write_lines(tmp_path / "d", header, f"0.png,{cells}", f"1.png,{cells}", count=2)

    data = read_keypoints(folder, TableRules())

    assert data.images[0].points.tolist() == POINTS
    assert data.warnings == (f"Columns were paired by their names, not by their order: {pairs}.",)
    assert read_keypoints(folder, TableRules(names=("a", "b"))).names == ("a", "b")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image,width,height,class,area", "no columns with the x and y of points.*'width', 'height', 'class', 'area'"),
        ("image,xmin,ymin,xmax,ymax", "only the coordinates of boxes .*'xmin', 'ymin', 'xmax', 'ymax'"),
        ("image,bbox_x1,bbox_y1,bbox_x2,bbox_y2", "only the coordinates of boxes"),
        ("image,nose_x,nose_y,ear_x,eer_y", "'ear_x' has no partner with the y .* Did you mean 'eer_y'"),
        ("image,nose_x,nose_y,x,z", "'x' has no partner"),
        ("image,a,b,c,d", "give --names if they alternate"),
        ("0.png,1,2,3,4", r"has no header: its first row names the image '0\.png'"),
    ],
)
def test_columns_that_are_no_points_are_refused_by_name(tmp_path, header, message):
    with pytest.raises(CannotTrain, match=message):
        read_keypoints(write_lines(tmp_path / "d", header, *ROWS), TableRules())


def test_columns_beside_points_are_named_and_not_read(tmp_path):
    header = "image,width,height,bbox_x,bbox_y,nose_x,nose_y,nose_likelihood,class"
    rows = [f"{i}.png,48,40,3,4,{10 + i},20,0.9,hand" for i in range(2)]

    data = read_keypoints(write_lines(tmp_path / "d", header, *rows, count=2), TableRules())

    assert data.names == ("nose",)
    ignored = "'width', 'height', 'bbox_x', 'bbox_y', 'nose_likelihood', 'class'"
    assert data.warnings == (f"points.csv: not read, since they are no points: {ignored}.",)


def test_columns_without_names_alternate_with_a_sentence(tmp_path):
    data = read_keypoints(write_lines(tmp_path / "d", ",0,1,2,3", *ROWS, count=2), TableRules())

    assert data.images[0].points.tolist() == POINTS
    assert data.warnings == ("points.csv: the header names no points; the columns were read as x, y, x, y, ….",)


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        (("nose_x,nose_y,image", "10,20,0.png", "11,20,1.png"), "column 3, 'image'"),
        ((",file,nose_x,nose_y", "0,0.png,10,20", "1,1.png,11,20"), "column 2, 'file'"),
        ((",file,0,1", "0,0.png,10,20", "1,1.png,11,20"), "column 2, 'file'"),
    ],
)
def test_images_are_found_in_another_column_than_the_first(tmp_path, lines, where):
    data = read_keypoints(write_lines(tmp_path / "d", *lines, count=2), TableRules())

    assert [image.points.tolist() for image in data.images] == [[[10.0, 20.0]], [[11.0, 20.0]]]
    assert data.warnings[0] == f"points.csv: the images are named in {where}."


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        (("2", "1", "0", "2"), "2 points are visible, 1 hidden, which were kept, and 1 absent"),
        (("1", "1.0", "0", "1"), "3 points are visible, 0 hidden, which were kept, and 1 absent"),
        (("True", "true", "False", "TRUE"), "3 points are visible, 0 hidden, which were kept, and 1 absent"),
    ],
    ids=["COCO", "0 and 1", "true and false"],
)
@pytest.mark.parametrize("header", ["image,x1,y1,v1,x2,y2,v2", "image,v_2,visible_1,y2,x2,y1,x1"])
def test_points_of_visibility_zero_are_missing_and_hidden_ones_are_kept(tmp_path, header, values, counts):
    rows = []
    for i in range(2):
        cells = {"image": f"{i}.png", "x1": 10, "y1": 20, "x2": 0, "y2": 0}
        first, second = values[2 * i : 2 * i + 2]
        cells |= {"v1": first, "visible_1": first, "v2": second, "v_2": second}
        rows.append(",".join(str(cells[name]) for name in header.split(",")))
    folder = write_lines(tmp_path / "d", header, *rows, count=2)

    data = read_keypoints(folder, TableRules())

    assert sum(int(np.isnan(image.points).any(axis=1).sum()) for image in data.images) == 1
    assert any(counts in warning for warning in data.warnings)


def test_absent_points_with_coordinates_are_counted(tmp_path):
    lines = ("image,x1,y1,v1,x2,y2,v2", "0.png,10,20,2,30,25,0", "1.png,10,20,1,0,0,0", "2.png,10,20,2,1,1,2")

    (warning,) = read_keypoints(write_lines(tmp_path / "d", *lines, count=3), TableRules()).warnings

    assert warning.endswith("1 absent points have coordinates; without the columns of visibility they would be used.")


def test_confidences_are_no_visibilities_and_others_are_refused(tmp_path):
    header = "image,nose_x,nose_y,nose_v"
    folder = write_lines(tmp_path / "d", header, "0.png,1,2,0.93", "1.png,3,4,0", count=2)

    data = read_keypoints(folder, TableRules())

    assert not np.isnan([image.points for image in data.images]).any()
    assert "the columns of visibility ('nose_v') contain fractions" in data.warnings[0]
    write_lines(folder, header, "0.png,1,2,1", "1.png,3,4,7", count=2)
    with pytest.raises(CannotTrain, match=r"row 3: the visibility of 'nose' is '7'\. It must be 0 "):
        read_keypoints(folder, TableRules())


def test_what_points_at_zero_mean_is_asked_about(tmp_path):
    lines = ("image,left_x,left_y,right_x,right_y", "0.png,1,2,0,0", "1.png,0,5,0,0.0", "2.png,1,2,3,4")
    folder = write_lines(tmp_path / "d", *lines, count=3)

    with pytest.raises(
        CannotTrain, match=r"2 points in 2 images lie at exactly \(0, 0\), first 'right' in .*row 2.*--zero missing"
    ):
        read_keypoints(folder, TableRules())
    missing = read_keypoints(folder, TableRules(zero="missing"))
    kept = read_keypoints(folder, TableRules(zero="point"))

    assert np.isnan(missing.images[0].points[1]).all()
    assert missing.images[1].points[0].tolist() == [0, 5]
    assert missing.warnings == ("2 points at exactly (0, 0) count as missing (--zero missing).",)
    assert kept.images[0].points[1].tolist() == [0, 0]


def test_negative_points_that_stand_for_absent_ones_are_named(tmp_path):
    lines = ("image,nose_x,nose_y", "0.png,-1,-1", "1.png,-1,-1", "2.png,50,1", "3.png,3,4")
    folder = write_lines(tmp_path / "d", *lines, "4.png,3,4", count=5)

    with pytest.raises(CannotTrain, match=r"3 points lie outside in all\. Of them, 2 lie at \(-1, -1\)"):
        read_keypoints(folder, TableRules())
    assert "Of them, 2 lie at (-1, -1)" in read_keypoints(folder, TableRules(outside="drop")).warnings[0]


def test_fractions_of_the_image_size_are_refused(tmp_path):
    lines = ("image,nose_x,nose_y", "0.png,0.25,0.5", "1.png,0.75,1.02")

    with pytest.raises(CannotTrain, match=r"All coordinates lie between 0\.25 and 1\.02.*must be pixels"):
        read_keypoints(write_lines(tmp_path / "d", *lines), TableRules())


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("semicolons", ("image;nose_x;nose_y", "0.png;10,5;20", "1.png;11,5;20")),
        ("semicolons", ("sep=;", "image;nose_x;nose_y", "0.png;10,5;20", "1.png;11,5;20")),
        ("tabs", ("image\tnose_x\tnose_y", "0.png\t10,5\t20", "1.png\t11,5\t20")),
        ("vertical bars", ("image|nose_x|nose_y", "0.png|10,5|20", "1.png|11,5|20")),
    ],
    ids=["semicolons", "Excel's first line", "tabs", "bars"],
)
def test_other_separators_and_decimal_commas_are_read(tmp_path, name, lines):
    data = read_keypoints(write_lines(tmp_path / "d", *lines, count=2), TableRules())

    assert [image.points.tolist() for image in data.images] == [[[10.5, 20.0]], [[11.5, 20.0]]]
    assert data.warnings == (
        f"The columns of points.csv are separated by {name}.",
        "points.csv: commas in numbers were read as decimal points.",
    )


def test_tables_in_other_encodings_or_compressed_are_read_and_said(tmp_path):
    folder = write_images(tmp_path / "d", 3, header=("datei", "maul_x", "maul_y", "flügel_x", "flügel_y"))
    text = (folder / "points.csv").read_text("utf-8")

    for content, rules, encoding in (
        (text.encode("cp1252"), TableRules(encoding="cp1252"), "CP1252"),
        (text.encode("utf-16"), TableRules(), "UTF-16"),
        (gzip.compress(text.encode("utf-16-le")), TableRules(), "UTF-16"),
    ):
        (folder / "points.csv").write_bytes(content)
        data = read_keypoints(folder, rules)

        assert data.names == ("maul", "flügel")
        assert data.warnings == (f"points.csv was read as {encoding}.",)
    (folder / "points.csv").write_bytes(text.replace(",", " ").encode())
    assert len(read_keypoints(folder, TableRules(separator="space")).images) == 3


@pytest.mark.parametrize(("prefix", "empty"), [("labeled-data/film/", ""), ("labeled-data,film,", ",,")])
def test_header_of_deeplabcut_is_read(tmp_path, prefix, empty):
    lines = (f"scorer{empty},me,me,me", f"bodyparts{empty},nose,nose,nose", f"coords{empty},x,y,likelihood")
    rows = [f"{prefix}{i}.png,{10 + i},20,1" for i in range(2)]

    data = read_keypoints(write_lines(tmp_path / "d", *lines, *rows, count=2), TableRules())

    assert data.names == ("nose",)
    assert [image.points.tolist() for image in data.images] == [[[10.0, 20.0]], [[11.0, 20.0]]]
    assert any(warning.startswith("2 images were not found under their paths") for warning in data.warnings)


def test_several_animals_of_deeplabcut_are_refused(tmp_path):
    lines = ("scorer,me,me,me,me", "individuals,a,a,b,b", "bodyparts,nose,nose,nose,nose", "coords,x,y,x,y", *ROWS)

    with pytest.raises(CannotTrain, match=r"points of several animals \(a, b\)"):
        read_keypoints(write_lines(tmp_path / "d", *lines), TableRules())


def test_paths_of_another_machine_are_found_by_the_file_name(tmp_path):
    lines = ("image,nose_x,nose_y", r"C:\data\0.png,10,20", "/home/ann/1.png,11,20")

    data = read_keypoints(write_lines(tmp_path / "d", *lines, count=2), TableRules())

    assert [image.path.name for image in data.images] == ["0.png", "1.png"]
    assert data.warnings[0].startswith("2 images were not found under their paths and were taken by their names")


def test_images_that_no_table_lists_are_counted(tmp_path):
    lines = ("image,nose_x,nose_y", "0.png,10,20", "1.png,11,20")

    data = read_keypoints(write_lines(tmp_path / "d", *lines, count=4), TableRules())

    assert data.warnings == ("2 images (2.png, …) are in no table and were not used.",)


def test_tables_may_have_the_points_in_different_orders(tmp_path):
    write_lines(tmp_path / "d", "image,a_x,a_y,b_x,b_y", "0.png,1,2,3,4")
    (tmp_path / "d" / "more.csv").write_text("image,b_x,b_y,a_x,a_y\n1.png,3,4,1,2\n")

    data = read_keypoints(tmp_path, TableRules(tables=("points.csv", "more.csv")))

    assert [image.points.tolist() for image in data.images] == [[[1, 2], [3, 4]]] * 2
