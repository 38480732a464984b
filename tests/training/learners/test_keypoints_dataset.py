"""Tables of points, and what happens to points when their picture is turned."""

import csv
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.contract import Limits
from tasks.keypoints import Keypoints
from tests.training.conftest import picture
from training.core.errors import CannotTrain
from training.engine.batches import make_loader
from training.engine.runtime import Runtime
from training.learners.keypoints.annotations import TableRules, read_points
from training.learners.keypoints.dataset import KeypointImages, Turning, turned

TASK = Keypoints(names=("left", "right"), size=32)
HEADER = ("file", "left_x", "left_y", "right_x", "right_y")


def write(folder, rows, header=HEADER, name="points.csv"):
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return folder


def numbered(folder, count, **more):
    """Pictures of 48×40 pixels, with two points each."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        picture((90, 120, 30), i).save(folder / f"{i}.png")
    return write(folder, [(f"{i}.png", 10 + i, 20, 30, 20.5) for i in range(count)], **more)


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (HEADER, ("left", "right")),
        (("file", "left.x", "left.y", "right X", "right Y"), ("left", "right")),
        (("", "0", "1", "2", "3"), ("point_1", "point_2")),
    ],
)
def test_the_header_names_the_points_or_they_are_numbered(tmp_path, header, names):
    found = read_points(numbered(tmp_path / "d", 3, header=header), TableRules())

    assert found.names == names
    assert found.marked[1].points.tolist() == [[11.0, 20.0], [30.0, 20.5]]


def test_names_can_be_given_where_the_header_has_none(tmp_path):
    folder = numbered(tmp_path / "d", 3, header=("", "0", "1", "2", "3"))

    assert read_points(folder, TableRules(names=("eye", "ear"))).names == ("eye", "ear")
    with pytest.raises(CannotTrain, match="has 2 points, and --names names 3"):
        read_points(folder, TableRules(names=("a", "b", "c")))


def test_a_file_may_be_named_itself_and_spaces_and_empty_lines_do_no_harm(tmp_path):
    folder = numbered(tmp_path / "d", 3)
    (folder / "points.csv").write_text("file, left_x, left_y\n\n0.png, 1 , 2\n1.png,,\n 2.png,5,6\n\n")

    found = read_points(folder / "points.csv", TableRules())

    assert len(found.marked) == 2
    assert "1 pictures left out: none of their points is known." in found.notices


def test_missing_points_are_empty_cells(tmp_path):
    folder = numbered(tmp_path / "d", 3)
    write(folder, [("0.png", "", "", 1, 2), ("1.png", 3, 4, "NaN", "nan"), ("2.png", 5, 6, 7, 8)])

    found = read_points(folder, TableRules())

    assert [np.isnan(each.points).any(axis=1).tolist() for each in found.marked] == [
        [True, False],
        [False, True],
        [False, False],
    ]


def test_pictures_of_one_person_have_one_group(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("ann_1.png", "ann_2.png", "bob_1.png"):
        picture((90, 20, 30), len(name)).save(folder / name)
    rows = [("ann_1.png", 1, 2, 7), ("ann_2.png", 1, 2, 7), ("bob_1.png", 1, 2, 8)]
    write(folder, rows, header=("file", "nose_x", "nose_y", "film"))

    by_column = read_points(folder, TableRules(group_column="film"))
    write(folder, [row[:3] for row in rows], header=("file", "nose_x", "nose_y"))
    by_pattern = read_points(folder, TableRules(group_pattern=r"^(.+)_\d"))

    assert [each.group for each in by_column.marked] == ["7", "7", "8"]
    assert [each.group for each in by_pattern.marked] == ["ann", "ann", "bob"]
    assert by_column.grouped
    assert by_pattern.grouped


def test_without_groups_copies_of_a_picture_have_one(tmp_path):
    folder = numbered(tmp_path / "d", 3)
    Image.open(folder / "0.png").save(folder / "2.png")

    found = read_points(folder, TableRules())

    groups = [each.group for each in found.marked]
    assert groups[0] == groups[2] != groups[1]
    assert not found.grouped


def test_several_tables_have_their_own_folders_of_pictures(tmp_path):
    (tmp_path / "all").mkdir()
    for part in ("one", "two"):
        numbered(tmp_path / "all" / part, 2)
        (tmp_path / "all" / part / "points.csv").rename(tmp_path / "all" / f"{part}.csv")

    found = read_points(tmp_path, TableRules(tables=("one.csv", "two.csv"), pictures=("one", "two")))

    assert [each.path.parent.name for each in found.marked] == ["one", "one", "two", "two"]


BAD = [
    ([("0.png", 1, 2, 3, 4), ("9.png", 1, 2, 3, 4)], {}, "row 3 names the picture '9.png', and .* is no file"),
    ([("0.png", 1, 2, 3, 4), ("0.png", 1, 2, 3, 4)], {}, r"names 0\.png once more: it stands in .*row 2 already"),
    ([("0.png", 1, 2, 3, "four")], {}, "row 2: the y of 'right' is 'four', which is no number"),
    ([("0.png", 1, 2, 3, "inf")], {}, "is 'inf', which is no number"),
    ([("0.png", 1, 2, 3, "")], {}, "'right' has one coordinate of two"),
    ([("0.png", 1, 2, 3)], {}, "row 2 has 4 cells, and the header 5"),
    ([("0.png", 1, 2, 48.5, 4)], {}, r"a point at \(48.5, 4\) lies outside its picture of 48×40 pixels; .*--outside"),
    ([("0.png", 1, 2, -0.1, 4)], {}, "lies outside its picture"),
    ([("", 1, 2, 3, 4)], {}, "names the picture ''"),
    ([], {}, "holds no rows below its header"),
    ([("0.png", 1, 2)], {"header": ("file", "a_x", "a_z")}, "'a_x' and 'a_z' are no pair"),
    ([("0.png", 1, 2, 3)], {"header": ("file", "a_x", "a_y", "b_x")}, "has 3 columns of coordinates"),
    ([("0.png",)], {"header": ("file",)}, "has 0 columns of coordinates"),
    ([("0.png", 1, 2, 3, 4)], {"header": ("file", "a_x", "a_y", "a_x", "a_y")}, "two columns named 'a_x'"),
    ([("0.png", 1, 2, 3, 4)], {"header": ("file", "a_x", "a_y", "a x", "a y")}, "Two points are named 'a'"),
    ([("0.png", 1, 2, "", ""), ("1.png", 1, 2, "", "")], {}, "The point 'right' is missing in every picture"),
    ([("0.png", 1, 2, 3, 4)], {}, "pictures of one group only"),
]


@pytest.mark.parametrize(("rows", "more", "sentence"), BAD, ids=[sentence[:40] for _, _, sentence in BAD])
def test_each_mistake_in_a_table_is_one_sentence(tmp_path, rows, more, sentence):
    folder = numbered(tmp_path / "d", 3)
    write(folder, rows, **more)

    with pytest.raises(CannotTrain, match=sentence):
        read_points(folder, TableRules())


def test_other_mistakes_are_one_sentence_too(tmp_path):
    folder = numbered(tmp_path / "d", 3)
    (tmp_path / "empty").mkdir()
    mistakes = [
        (tmp_path / "empty", TableRules(), "holds 0 CSV files; it needs one"),
        (folder, TableRules(tables=("other.csv",)), "holds 0 files 'other.csv'"),
        (folder, TableRules(group_column="film"), "no column 'film' for --group-column"),
        (folder, TableRules(group_pattern="("), "--group-pattern is no regular expression"),
        (folder, TableRules(group_pattern="person"), "--group-pattern finds nothing in '0.png'"),
        (folder, TableRules(pictures=("a", "b")), "--pictures names 2 folders for 1 tables"),
    ]
    for data, rules, sentence in mistakes:
        with pytest.raises(CannotTrain, match=re.escape(sentence)):
            read_points(data, rules)
    (folder / "more.csv").write_text("file,left_x,left_y\n1.png,1,1\n")
    with pytest.raises(CannotTrain, match=r"holds 2 CSV files.*--tables"):
        read_points(folder, TableRules())
    with pytest.raises(CannotTrain, match="other points than the table before"):
        read_points(folder, TableRules(tables=("points.csv", "more.csv")))
    (folder / "1.png").write_bytes(b"no picture")
    with pytest.raises(CannotTrain, match=r"1\.png cannot be read"):
        read_points(folder / "points.csv", TableRules())
    assert len(read_points(folder / "points.csv", TableRules(unreadable="skip")).marked) == 2
    (folder / "points.csv").write_bytes(b"file,a_x,a_y\n\xff\xfe,1,2\n")
    with pytest.raises(CannotTrain, match="cannot be read as a table"):
        read_points(folder / "points.csv", TableRules())


@pytest.mark.parametrize(("outside", "points"), [("clip", [[48.0, 4.0]]), ("drop", [[np.nan, np.nan]])])
def test_points_outside_are_clipped_or_dropped_on_request(tmp_path, outside, points):
    folder = numbered(tmp_path / "d", 3)
    write(folder, [("0.png", 1, 2, 60, 4), ("1.png", 1, 2, 3, 4), ("2.png", 5, 2, 3, 4)])

    found = read_points(folder, TableRules(outside=outside))

    assert np.array_equal(found.marked[0].points[1:], points, equal_nan=True)
    assert found.notices[0].startswith("1 points")


def spots(size, points):
    """Coloured spots of 9 pixels around points, on black; the first is red, the second blue."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    for (left, top), channel in zip(points, (0, 2), strict=True):
        pixels[np.hypot(x - left, y - top) < 5, channel] = 255
    return Image.fromarray(pixels)


def middle_of(channel):
    y, x = np.mgrid[: channel.shape[0], : channel.shape[1]] + 0.5
    weight = np.where(channel > 100, channel, 0).astype(float)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(90, 300), st.integers(90, 300), st.booleans())
def test_a_spot_is_where_its_point_says_however_the_picture_was_turned(seed, width, height, mirrored):
    torch.manual_seed(seed)
    points = np.array([[0.35 * width, 0.4 * height], [0.6 * width, 0.55 * height]])
    how = Turning(light=0.0, hidden=0.0, twins=(0, 1) if mirrored else ())

    image, moved = turned(spots((width, height), points), points, 96, how)

    pixels = np.asarray(image).astype(int)
    inside = ((moved > 6) & (moved < 90)).all(axis=1)
    background = np.abs(pixels - np.array([124, 116, 104])).max(axis=2) < 12
    for point, channel, ok in zip(moved, (0, 2), inside, strict=True):
        if ok:
            level = np.where(background, 0, pixels[..., channel] - pixels[..., 1])
            assert np.abs(middle_of(level) - point).max() < 0.7


def test_twins_change_places_in_a_mirror():
    points = np.array([[40.0, 50.0], [60.0, 50.0]])
    still = Turning(degrees=0, smallest=1, largest=1, shift=0, light=0, hidden=0, twins=(1, 0))
    seen = set()

    for seed in range(8):
        torch.manual_seed(seed)
        image, moved = turned(spots((100, 100), points), points, 100, still)
        red_is_left = np.asarray(image)[50, 40, 0] > 200
        seen.add(bool(red_is_left))

        assert moved[0, 0] < moved[1, 0], "what is left in the picture is called left, mirrored or not"

    assert seen == {True, False}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 3000), st.integers(20, 3000), st.floats(0.05, 0.45))
def test_points_that_fit_stay_inside_and_the_picture_has_its_size(seed, width, height, reach):
    if max(width, height) > 8 * min(width, height):
        height = width
    torch.manual_seed(seed)
    middle, side = np.array([width / 2, height / 2]), min(width, height) * reach
    points = np.array([middle - side, middle + side, [np.nan, np.nan]])

    image, moved = turned(Image.new("RGB", (width, height)), points, 64, Turning(largest=1.2))

    assert image.size == (64, 64)
    assert np.isnan(moved[2]).all()
    known = moved[:2][~np.isnan(moved[:2])]
    assert ((known >= 0) & (known <= 64)).all()
    if reach < 0.2:
        assert len(known) == 4


def samples(folder, **more):
    data = read_points(folder, TableRules(size=32))
    return KeypointImages([each.path for each in data.marked], [each.points for each in data.marked], TASK, **more)


def test_without_changes_a_sample_is_what_the_service_makes_of_the_file(tmp_path):
    made = samples(numbered(tmp_path / "d", 3))

    batch = made.__getitems__([(0, 1)])

    request = TASK.parse({"image": made.paths[1].read_bytes()}, Limits())
    served = TASK.preprocess(TASK.decode(request, Limits()))
    assert torch.equal(batch["image"], torch.from_numpy(served.arrays["image"].copy()))
    back = served.context[0].to_image(batch["target"][0].numpy())
    assert np.abs(back - made.points[1]).max() < 1e-4


def test_points_of_a_large_photo_that_is_decoded_smaller_keep_their_place(tmp_path):
    spots((4000, 3000), [(1000, 900), (2500, 1500)]).resize((2000, 1500)).save(tmp_path / "a.jpg")
    points = np.array([[500.0, 450.0], [1250.0, 750.0]])
    still = Turning(degrees=0, smallest=1, largest=1, shift=0, light=0, hidden=0)

    kept, changed = (
        KeypointImages([tmp_path / "a.jpg"], [points], TASK, turning=how).sample((0, 0))["target"].numpy()
        for how in (None, still)
    )

    # The sides of a picture that is made smaller are rounded up to whole pixels, and its scale follows.
    assert np.abs(kept - changed).max() < 0.3


def test_changes_follow_from_seed_epoch_and_picture_and_not_from_who_prepares_them(tmp_path):
    made = samples(numbered(tmp_path / "d", 6), seed=3, turning=Turning())
    keys = [[(0, 1), (0, 2)], [(1, 1), (0, 5)]]
    runtime = Runtime(torch.device("cpu"))

    torch.manual_seed(1)
    alone = list(make_loader(made, keys, runtime, workers=0))
    torch.manual_seed(2)
    helped = list(make_loader(made, keys, runtime, workers=2))

    for name in ("image", "target"):
        assert all(
            torch.equal(one[name].nan_to_num(), other[name].nan_to_num())
            for one, other in zip(alone, helped, strict=True)
        )
    assert not torch.equal(alone[0]["image"][0], alone[1]["image"][0])
