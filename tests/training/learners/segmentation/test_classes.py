from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from training.core.errors import CannotTrain
from training.learners.segmentation.classes import IGNORED, MaskRules
from training.learners.segmentation.mask_folder import read_mask_folder

COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 128, 0), (0, 0, 255)], np.uint8)


def draw_indices(number):
    """A mask (40, 64) of the values 0 to 3; a box of value 1, a bar of value 2 above and one of value 3 below."""
    indices = np.zeros((40, 64), np.uint8)
    left = 4 + number * 5 % 30
    indices[8:32, left : left + 20] = 1
    indices[:5], indices[35:] = 2, 3
    return indices


def draw_box(number):
    """A mask (40, 64) of the values 0 and 1."""
    return (draw_indices(number) == 1).astype(np.uint8)


@pytest.fixture
def write(tmp_path):
    """Writes eight images with masks that `save` writes, given the path without extension and the number."""

    def write_folder(save, codes=()):
        for name in ("images", "masks"):
            (tmp_path / name).mkdir()
        for number in range(8):
            noise = np.random.default_rng(number).integers(0, 255, (40, 64, 3)).astype(np.uint8)
            Image.fromarray(noise).save(tmp_path / "images" / f"{number}.png")
            save(str(tmp_path / "masks" / f"{number}"), number)
        if codes:
            (tmp_path / "codes.txt").write_text("\n".join(codes))
        return tmp_path

    return write_folder


def read(folder, **rules):
    return read_mask_folder(folder, MaskRules(**rules), unreadable="refuse", valid_fraction=0.25, size=64)


def targets(data):
    """The target of each mask, by its number."""
    return {int(pair.mask.stem): data.classes.read_target(pair.mask) for pair in (*data.train, *data.validation)}


def assert_targets(data, expected):
    for number, target in targets(data).items():
        assert np.array_equal(target, expected(number))


def save_values(values):
    """Saves masks with these values instead of the indices 0, 1, 2 and 3, as PNG."""
    return lambda path, number: Image.fromarray(np.array(values)[draw_indices(number)]).save(f"{path}.png")


def as_jpeg(path, number):
    Image.fromarray(draw_box(number) * 255).save(f"{path}.jpg", quality=60)


def as_colour_jpeg(path, number):
    Image.fromarray(draw_box(number) * 255).convert("RGB").save(f"{path}.jpg", quality=60)


def as_lossy_webp(path, number):
    Image.fromarray(draw_box(number) * 255).save(f"{path}.webp", quality=60)


def as_png_of_a_jpeg(path, number):
    as_jpeg(path, number)
    Image.open(f"{path}.jpg").save(f"{path}.png")
    Path(f"{path}.jpg").unlink()


def with_soft_edges(path, number):
    Image.fromarray(draw_box(number) * 255).filter(ImageFilter.GaussianBlur(1)).save(f"{path}.png")


NOISY = [as_jpeg, as_colour_jpeg, as_lossy_webp, as_png_of_a_jpeg, with_soft_edges]


@pytest.mark.parametrize("save", NOISY)
def test_black_and_white_masks_with_noise_or_soft_edges_have_two_classes_and_a_sentence(write, save):
    data = read(write(save))

    assert data.classes.labels == ("background", "foreground")
    wrong = [(target != draw_box(number)).mean() for number, target in targets(data).items()]
    assert max(wrong) < 0.01
    (sentence,) = data.warnings
    assert "values close to 0 and 255" in sentence
    assert "read as two classes, black as 'background' and white as 'foreground'" in sentence


def test_labels_of_black_and_white_masks_can_be_named(write):
    folder = write(as_jpeg, codes=("ground", "roof"))

    assert read(folder).classes.labels == ("ground", "roof")
    (folder / "codes.txt").unlink()
    assert read(folder, labels=("no", "yes")).classes.labels == ("no", "yes")


def test_exactly_black_and_white_masks_have_two_classes_in_every_mode(write):
    modes = ("L", "RGB", "RGBA", "LA")
    folder = write(
        lambda path, number: Image.fromarray(draw_box(number) * 255).convert(modes[number % 4]).save(f"{path}.png")
    )

    data = read(folder)

    assert data.classes.labels == ("background", "foreground")
    assert_targets(data, draw_box)
    assert data.warnings[0].startswith("The masks are black and white: 0 was read as 'background', 255 as 'foreground'")


def test_white_written_as_1_in_some_masks_and_255_in_others_is_one_class(write):
    folder = write(
        lambda path, number: Image.fromarray(draw_box(number) * (255 if number % 2 else 1)).save(f"{path}.png")
    )

    data = read(folder)

    assert_targets(data, draw_box)
    assert "White is the value 1 in 4 masks and 255 in 4: both were read as 'foreground'" in data.warnings[0]
    assert read(folder, void=255).classes.index_of_value[255] == IGNORED


def test_masks_of_0_and_1_among_noisy_black_and_white_ones_are_refused(write):
    def save(path, number):
        return as_jpeg(path, number) if number % 2 else Image.fromarray(draw_box(number)).save(f"{path}.png")

    with pytest.raises(CannotTrain, match=r"0\.png contains only 0 and 1, while other masks .* are black and white"):
        read(write(save))


def three_greys(number):
    return np.array([0, 255, 128, 128], np.uint8)[draw_indices(number)]


def test_what_three_greys_mean_is_asked_about(write):
    folder = write(lambda path, number: Image.fromarray(three_greys(number)).save(f"{path}.png"))

    with pytest.raises(
        CannotTrain, match=r"the values 0 \(.*\), 128 \(25\.0 %\) and 255 .*look like greys.*--values 0,128,255"
    ):
        read(folder)
    assert_targets(read(folder, values=("0", "255"), void=128), lambda i: np.array([0, 1, 255, 255])[draw_indices(i)])
    assert_targets(read(folder, values=("0", "128", "255")), lambda i: np.array([0, 2, 1, 1])[draw_indices(i)])
    assert_targets(read(folder, void=255), lambda i: np.array([0, 255, 1, 1])[draw_indices(i)])


def test_a_third_grey_in_a_jpeg_is_no_edge(write):
    folder = write(lambda path, number: Image.fromarray(three_greys(number)).save(f"{path}.jpg", quality=90))

    with pytest.raises(CannotTrain, match=r"0\.jpg is compressed with losses.*Save them as PNG"):
        read(folder)


@pytest.mark.parametrize("codes", [(), ("a", "b", "c", "d")])
def test_indices_in_a_jpeg_are_refused(write, codes):
    folder = write(lambda path, number: Image.fromarray(draw_indices(number)).save(f"{path}.jpg", quality=95), codes)

    with pytest.raises(CannotTrain, match=r"0\.jpg is compressed with losses"):
        read(folder)


def test_continuous_greys_are_refused_until_two_values_are_given(write):
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (40, 1))
    folder = write(lambda path, number: Image.fromarray(ramp).save(f"{path}.png"))

    with pytest.raises(CannotTrain, match=r"64 different values from 0 to 255.*--values 0,255"):
        read(folder)
    data = read(folder, values=("0", "255"))
    assert_targets(data, lambda number: (ramp >= 128).astype(np.uint8))
    assert "62 other values than 0 and 255, 96.9 % of the pixels, count as the nearer one." in data.warnings


def test_each_value_among_gaps_becomes_a_label_with_a_sentence(write):
    folder = write(save_values(np.array([0, 1, 3, 3], np.uint8)))

    data = read(folder)

    assert data.classes.labels == ("class 0", "class 1", "class 3")
    assert_targets(data, lambda number: draw_indices(number).clip(0, 2))
    assert "0 is 'class 0', 1 is 'class 1' and 3 is 'class 3'" in data.warnings[0]
    with pytest.raises(CannotTrain, match=r"value 3, but there are only 3 labels.*--values"):
        read(folder, labels=("a", "b", "c"))
    assert read(folder, labels=("a", "b", "c"), values=("0", "1", "3")).classes.labels == ("a", "b", "c")


def test_unnamed_indices_are_told_with_the_share_of_unlabelled_pixels(write):
    data = read(write(save_values(np.array([0, 1, 2, 255], np.uint8))))

    assert data.classes.labels == ("class 0", "class 1", "class 2")
    assert "The labels have no names and are called after the mask values" in data.warnings[0]
    assert "Pixels of the value 255 (12.5 %) count as unlabelled: they are not learnt." in data.warnings


def test_many_indices_with_void_are_not_taken_for_black_and_white(write):
    def save(path, number):
        indices = np.random.default_rng(number).geometric(0.3, (40, 64)).clip(1, 21) - 1
        indices[:5] = 255
        Image.fromarray(indices.astype(np.uint8)).save(f"{path}.png")

    names = tuple(f"kind {number}" for number in range(21))
    assert read(write(save, codes=names)).classes.labels == names


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1, 2, 3), (0, 1, 2, 3)),
        ((0, 1, 2, 65535), (0, 1, 2, IGNORED)),
        ((0, 65535, 0, 0), (0, 1, 0, 0)),
        ((0, 257, 514, 771), (0, 1, 2, 3)),
    ],
    ids=["indices", "void", "black and white", "stretched"],
)
def test_masks_of_16_bits_are_read(write, values, expected):
    data = read(write(save_values(np.array(values, np.uint16))))

    assert_targets(data, lambda number: np.array(expected)[draw_indices(number)])


def test_numbers_of_objects_in_16_bits_are_refused(write):
    with pytest.raises(CannotTrain, match=r"0\.png has 16-bit values up to 26001"):
        read(write(save_values(np.array([0, 24000, 24001, 26001], np.uint16))))


def in_colour(path, number):
    Image.fromarray(COLOURS[draw_indices(number)]).save(f"{path}.png")


def with_a_palette_of_its_own(path, number):
    order = np.random.default_rng(number).permutation(4)
    mask = Image.fromarray(order.astype(np.uint8)[draw_indices(number)])
    mask.putpalette(COLOURS[np.argsort(order)].ravel().tolist())
    mask.save(f"{path}.png")


@pytest.mark.parametrize("save", [in_colour, with_a_palette_of_its_own])
def test_masks_in_colour_are_read_by_the_colours_of_the_labels(write, save):
    folder = write(save)
    colours = ("000000", "ff0000", "008000", "0000FF")

    data = read(folder, colours=colours, labels=("ground", "roof", "void", "tree"))

    assert data.classes.labels == ("ground", "roof", "tree")
    assert data.classes.colours == ((0, 0, 0), (255, 0, 0), (0, 0, 255))
    assert_targets(data, lambda number: np.array([0, 1, IGNORED, 2])[draw_indices(number)])
    with pytest.raises(CannotTrain, match=r"Their colours are 000000 \(.* --colours 000000,.*--labels"):
        read(folder)
    with pytest.raises(CannotTrain, match=r"0\.png contains the colour 0000ff, which --colours lacks"):
        read(folder, colours=colours[:3])
    with pytest.raises(CannotTrain, match="--colours has 4 colours for 2 labels"):
        read(folder, colours=colours, labels=("a", "b"))


def test_palettes_of_greys_that_differ_are_read_by_their_greys(write):
    def save(path, number):
        mask = Image.fromarray(draw_box(number) ^ (number % 2))
        mask.putpalette([255, 255, 255, 0, 0, 0] if number % 2 else [0, 0, 0, 255, 255, 255])
        mask.save(f"{path}.png")

    data = read(write(save))

    assert_targets(data, draw_box)
    assert "The palettes of the masks differ: the value 0 is the colour 000000" in data.warnings[0]


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (
            lambda path, number: Image.fromarray(COLOURS[draw_indices(number)]).save(f"{path}.jpg"),
            r"0\.jpg has .* colours",
        ),
        (
            lambda path, number: Image.fromarray(np.dstack([draw_box(number) * 255] * 4)).save(f"{path}.png"),
            r"0\.png is transparent in places",
        ),
    ],
    ids=["colour JPEG", "transparent"],
)
def test_masks_without_one_value_per_pixel_are_refused(write, save, message):
    with pytest.raises(CannotTrain, match=message):
        read(write(save), colours=("000000", "ff0000", "008000", "0000ff"))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"values": ("0", "1")}, r"contains the value 2, which --values \(0 and 1\) lacks"),
        ({"values": ("0", "1", "1")}, "must be different whole numbers from 0 to 255"),
        ({"values": ("0", "256")}, "must be different whole numbers"),
        ({"values": ("0", "x")}, "must be different whole numbers"),
        ({"values": ("0", "1", "2", "3"), "labels": ("a", "b")}, "--values has 4 values for 2 labels"),
        ({"colours": ("ff0000", "FF0000")}, "has the colour ff0000 twice"),
    ],
)
def test_rules_that_do_not_fit_are_refused(write, rules, message):
    folder = write(save_values(np.arange(4, dtype=np.uint8)))

    with pytest.raises(CannotTrain, match=message):
        read(folder, **rules)


def test_names_of_labels_may_be_in_utf_16(write):
    folder = write(save_values(np.arange(4, dtype=np.uint8)), codes=("Wiese", "Straße", "c", "d"))
    (folder / "codes.txt").write_text("Wiese\nStraße\nc\nd\n", "utf-16")

    data = read(folder)

    assert data.classes.labels == ("Wiese", "Straße", "c", "d")
    assert "codes.txt was read as UTF-16." in data.warnings


def test_labels_that_codes_txt_overrides_are_named(write):
    folder = write(save_values(np.arange(4, dtype=np.uint8)), codes=("a", "b", "c", "d"))

    data = read(folder, labels=("e", "f", "g", "h"))

    assert data.classes.labels == ("a", "b", "c", "d")
    assert "--labels, which names others, was not used" in data.warnings[0]
