import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks._images import DecodedImage, Frame
from tasks.contract import Limits
from tasks.segmentation import Segmentation
from tests.training.street_scenes import PALETTE, write_streets
from training.core.errors import CannotTrain
from training.learners.segmentation.dataset import IGNORED, MaskedImages, read_masks, view_windows_of


@pytest.fixture
def streets(tmp_path):
    """Makes a folder of pictures and masks."""
    return lambda count=8, *parts, root="streets", **more: write_streets(tmp_path / root, count, *parts, **more)


def read(folder, **more):
    return read_masks(folder, **{"unreadable": "refuse", "valid_fraction": 0.25, "size": 48} | more)


def test_images_and_masks_become_pairs_with_the_labels_of_the_codes_and_void_left_out(streets):
    found = read(streets())

    assert found.classes.labels == ("sky", "road", "house")
    assert found.classes.index[[0, 1, 2, 3, 255]].tolist() == [0, 1, IGNORED, 2, IGNORED]
    assert (len(found.train), len(found.validation)) == (6, 2)
    assert all(pair.picture.stem == pair.mask.stem for pair in found.train)


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (("train", "trainannot"), ("val", "valannot")),
        (("images/train", "masks/train"), ("images/valid", "masks/valid")),
        (("train/images", "train/masks"), ("val/images", "val/masks")),
    ],
    ids=["SegNet", "images first", "split first"],
)
def test_every_layout_with_a_split_is_kept_as_it_is(streets, train, validation):
    streets(5, *train)
    folder = streets(3, *validation, first=100)

    found = read(folder)

    assert (len(found.train), len(found.validation)) == (5, 3)
    assert {pair.picture.stem for pair in found.validation} == {"100", "101", "102"}


def test_the_folder_inside_an_unpacked_archive_is_found(streets, tmp_path):
    streets(4, "train", "trainannot", root="outer/repository/CamVid")
    streets(2, "val", "valannot", root="outer/repository/CamVid", first=50)

    assert len(read(tmp_path / "outer").train) == 4


def test_training_pictures_that_are_copies_of_validation_pictures_are_left_out(streets):
    streets(5, "train", "trainannot")
    folder = streets(2, "val", "valannot", first=4)

    found = read(folder)

    assert len(found.train) == 4
    assert "1 training pictures left out" in found.notices[0]


def test_without_codes_the_labels_are_given_or_are_the_indices(streets):
    folder = streets(codes="")

    assert read(folder).classes.labels == ("class 0", "class 1", "class 2", "class 3")
    assert read(folder, labels=("a", "b", "void", "d")).classes.labels == ("a", "b", "d")
    assert read(folder, void=2).classes.labels == ("class 0", "class 1", "class 3")


def test_the_colours_of_palette_masks_are_taken_over(streets):
    folder = streets()
    for path in (folder / "masks").glob("*.png"):
        mask = Image.open(path).convert("L")
        mask.putpalette([1, 2, 3, 40, 50, 60, 0, 0, 0, 70, 80, 90])
        mask.save(path)

    assert read(folder).classes.colours == ((1, 2, 3), (40, 50, 60), (70, 80, 90))
    assert read(folder).classes.labels == ("sky", "road", "house")


def larger_mask(folder):
    Image.new("L", (50, 36)).save(folder / "masks" / "003.png")


def no_mask(folder):
    (folder / "masks" / "003.png").unlink()


def no_picture(folder):
    (folder / "images" / "003.jpg").unlink()


def unknown_index(folder):
    Image.new("L", (48, 36), 9).save(folder / "masks" / "003.png")


def coloured_mask(folder):
    Image.new("RGB", (48, 36)).save(folder / "masks" / "003.png")


def broken_mask(folder):
    (folder / "masks" / "003.png").write_bytes(b"this is no picture")


def broken_picture(folder):
    (folder / "images" / "003.jpg").write_bytes(b"this is no picture")


def no_folders(folder):
    shutil.rmtree(folder / "masks")


def one_class(folder):
    for path in (folder / "masks").glob("*"):
        Image.new("L", (48, 36), 0).save(path)


def doubled_label(folder):
    (folder / "codes.txt").write_text("sky\nroad\nVoid\nsky\n")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (larger_mask, r"003\.jpg has 48×36 pixels and its mask .*003\.png 50×36"),
        (no_mask, r"003\.jpg has no mask of the same name"),
        (no_picture, r"003\.png has no picture of the same name"),
        (unknown_index, r"003\.png has pixels of the index 9, and there are 4 labels.*--void 9"),
        (coloured_mask, r"003\.png is a picture of mode RGB: a mask is a PNG of one channel"),
        (broken_mask, r"The mask .*003\.png cannot be read"),
        (broken_picture, r"003\.jpg cannot be read.*--unreadable skip"),
        (no_folders, "neither the folders 'images' and 'masks' nor 'train' and 'trainannot'"),
        (one_class, "fewer than two classes"),
        (doubled_label, "'sky' stands twice"),
    ],
)
def test_wrong_data_is_named_in_one_sentence(streets, spoil, sentence):
    folder = streets()
    spoil(folder)

    with pytest.raises(CannotTrain, match=sentence):
        read(folder)


def test_nothing_to_read_is_said_so(streets, tmp_path):
    (tmp_path / "none" / "images").mkdir(parents=True)
    (tmp_path / "none" / "masks").mkdir()

    with pytest.raises(CannotTrain, match="no pictures"):
        read(tmp_path / "none")
    with pytest.raises(CannotTrain, match="is not a folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(CannotTrain, match="one picture only"):
        read(streets(1))


def pictures(folder, **more):
    found = read(folder)
    task = Segmentation(found.classes.labels, 48, 36)
    return MaskedImages(found.train, found.classes, task, **more)


def test_a_validation_sample_is_what_the_service_makes_of_the_file_with_its_mask(streets):
    made = pictures(streets())

    batch = made.__getitems__([(0, 2)])

    request = made.task.parse({"image": made.paths[2].read_bytes()}, Limits())
    served = made.task.preprocess(made.task.decode(request, Limits())).arrays["image"]
    assert torch.equal(batch["image"], torch.from_numpy(served.copy()))
    assert np.array_equal(batch["target"][0], made.mask(2))
    assert (batch["target"][0, :, -2:] == IGNORED).all()


def test_a_panorama_is_validated_in_its_windows(streets):
    made = pictures(streets(size=(480, 36)))

    batch = made.__getitems__([(0, index) for index in range(len(made))])

    assert len(made) == len(made.pairs) * len(made.task.windows(480, 36)[1])
    assert batch["target"].shape == (len(made), 36, 48)
    assert torch.equal(batch["target"][0], torch.from_numpy(made.mask(0)[:, :48]))


def matching(batch):
    """Share of the pixels with a label whose colour is nearest to that label's."""
    colours = torch.tensor(list(PALETTE.values()), dtype=torch.float)
    said = torch.cdist(batch["image"].float().flatten(0, 2), colours).argmin(dim=1)
    target = batch["target"].flatten()
    return (said == target)[target != IGNORED].float().mean()


@pytest.mark.parametrize("crop", [(32, 24), (64, 64)], ids=["smaller", "larger than the picture"])
def test_picture_and_mask_are_changed_together(streets, crop):
    made = pictures(streets(), crop=crop, seed=5)

    batch = made.__getitems__([(epoch, index) for epoch in range(4) for index in range(len(made))])

    assert batch["image"].shape[1:] == (crop[1], crop[0], 3)
    assert matching(batch) > 0.93
    assert len({tuple(target.flatten().tolist()) for target in batch["target"]}) > len(made)


def test_changes_follow_from_seed_epoch_and_picture_alone(streets):
    made = pictures(streets(), crop=(32, 24), seed=5)
    keys = [(0, 1), (0, 2)]

    torch.manual_seed(1)
    first = made.__getitems__(keys)
    torch.manual_seed(2)
    second = made.__getitems__(keys)

    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["target"], second["target"])
    assert not torch.equal(first["image"], made.__getitems__([(1, 1), (1, 2)])["image"])


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_mask_of_any_size_is_seen_where_its_picture_lies(width, height):
    task = Segmentation(("a", "b"), 32, 24)
    mask = np.zeros((height, width), np.uint8)
    samples = task.preprocess(DecodedImage(Image.new("RGB", (width, height)), width, height))

    seen = view_windows_of(mask, samples.context.frames[0], 32, 24)

    assert seen.shape == (24, 32)
    assert (seen == 0).any()
    assert set(np.unique(seen)) <= {0, IGNORED}


def test_what_lies_beside_the_picture_has_no_label():
    seen = view_windows_of(np.ones((10, 10), np.uint8), Frame(10, 10, 1.0, 1.0, 3.0, 0.0), 16, 10)

    assert (seen[:, 3:13] == 1).all()
    assert (seen[:, :3] == IGNORED).all()
    assert (seen[:, 13:] == IGNORED).all()


def test_masks_that_are_all_named_with_one_ending_more_are_found_as_in_the_courses_camvid(streets):
    folder = streets()
    for path in sorted((folder / "masks").iterdir()):
        path.rename(path.with_stem(path.stem + "_P"))

    assert len(read(folder).train) + len(read(folder).validation) == 8


def test_masks_in_black_and_white_are_two_classes(streets):
    folder = streets(codes=None)
    for path in sorted((folder / "masks").iterdir()):
        with Image.open(path) as mask:
            white = (np.asarray(mask) > 0).astype(np.uint8) * 255
        Image.fromarray(white).save(path)

    assert read(folder).classes.labels == ("background", "foreground")
    assert read(folder, labels=("roof", "no roof")).classes.labels == ("roof", "no roof")
