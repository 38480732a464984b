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
from tests.training.learners.segmentation.street_scenes import PALETTE
from training.core.errors import CannotTrain
from training.learners.segmentation.classes import IGNORED, MaskRules
from training.learners.segmentation.dataset import MaskedImages, project_mask
from training.learners.segmentation.mask_folder import read_mask_folder


def read(folder, **rules):
    return read_mask_folder(folder, MaskRules(**rules), unreadable="refuse", valid_fraction=0.25, size=48)


def test_images_and_masks_become_pairs_with_labels_from_codes_txt_and_without_void(streets):
    data = read(streets())

    assert data.classes.labels == ("sky", "road", "house")
    assert data.classes.index_of_value[[0, 1, 2, 3, 255]].tolist() == [0, 1, IGNORED, 2, IGNORED]
    assert (len(data.train), len(data.validation)) == (6, 2)
    assert all(pair.image.stem == pair.mask.stem for pair in data.train)


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (("train", "trainannot"), ("val", "valannot")),
        (("images/train", "masks/train"), ("images/valid", "masks/valid")),
        (("train/images", "train/masks"), ("val/images", "val/masks")),
    ],
    ids=["SegNet", "images first", "split first"],
)
def test_split_of_each_supported_layout_is_kept(streets, train, validation):
    streets(5, *train)
    folder = streets(3, *validation, first=100)

    data = read(folder)

    assert (len(data.train), len(data.validation)) == (5, 3)
    assert {pair.image.stem for pair in data.validation} == {"100", "101", "102"}


def test_data_is_found_inside_an_unpacked_archive(streets, tmp_path):
    streets(4, "train", "trainannot", root="outer/repository/CamVid")
    streets(2, "val", "valannot", root="outer/repository/CamVid", first=50)

    assert len(read(tmp_path / "outer").train) == 4


def test_training_images_that_are_copies_of_validation_images_are_left_out(streets):
    streets(5, "train", "trainannot")
    folder = streets(2, "val", "valannot", first=4)

    data = read(folder)

    assert len(data.train) == 4
    assert "1 training images were left out" in data.warnings[0]


def test_without_codes_txt_labels_are_given_or_are_the_mask_values(streets):
    folder = streets(codes="")

    assert read(folder).classes.labels == ("class 0", "class 1", "class 2", "class 3")
    assert read(folder, labels=("a", "b", "void", "d")).classes.labels == ("a", "b", "d")
    assert read(folder, void=2).classes.labels == ("class 0", "class 1", "class 3")


def test_colours_of_palette_masks_become_the_label_colours(streets):
    folder = streets()
    for path in (folder / "masks").glob("*.png"):
        mask = Image.open(path).convert("L")
        mask.putpalette([1, 2, 3, 40, 50, 60, 0, 0, 0, 70, 80, 90])
        mask.save(path)

    assert read(folder).classes.colours == ((1, 2, 3), (40, 50, 60), (70, 80, 90))
    assert read(folder).classes.labels == ("sky", "road", "house")


def enlarge_mask(folder):
    Image.new("L", (50, 36)).save(folder / "masks" / "003.png")


def remove_mask(folder):
    (folder / "masks" / "003.png").unlink()


def remove_image(folder):
    (folder / "images" / "003.jpg").unlink()


def add_unknown_value(folder):
    Image.new("L", (48, 36), 9).save(folder / "masks" / "003.png")


def colour_mask(folder):
    Image.new("RGB", (48, 36), (255, 0, 9)).save(folder / "masks" / "003.png")


def corrupt_mask(folder):
    (folder / "masks" / "003.png").write_bytes(b"not an image")


def corrupt_image(folder):
    (folder / "images" / "003.jpg").write_bytes(b"not an image")


def remove_mask_folder(folder):
    shutil.rmtree(folder / "masks")


def keep_one_class(folder):
    for path in (folder / "masks").glob("*"):
        Image.new("L", (48, 36), 0).save(path)


def duplicate_label(folder):
    (folder / "codes.txt").write_text("sky\nroad\nVoid\nsky\n")


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (enlarge_mask, r"003\.jpg has 48×36 pixels but its mask .*003\.png has 50×36"),
        (remove_mask, r"003\.jpg has no mask of the same name"),
        (remove_image, r"003\.png has no image of the same name"),
        (add_unknown_value, r"003\.png contains the value 9, but there are only 4 labels.*--void 9"),
        (colour_mask, r"in colour \(003\.png, for example\).*ff0009 \(12\.5 %\).* --colours .*ff0009"),
        (corrupt_mask, r"The mask .*003\.png cannot be read"),
        (corrupt_image, r"003\.jpg cannot be read.*--unreadable skip"),
        (remove_mask_folder, "neither the folders 'images' and 'masks' nor 'train' and 'trainannot'"),
        (keep_one_class, "fewer than two classes"),
        (duplicate_label, "'sky' occurs twice"),
    ],
)
def test_invalid_data_is_refused_with_a_message(streets, corrupt, message):
    folder = streets()
    corrupt(folder)

    with pytest.raises(CannotTrain, match=message):
        read(folder)


def test_files_that_are_no_images_are_counted_by_reason(streets):
    folder = streets()
    (folder / "images" / "clip.mov").write_bytes(b"video")
    (folder / "masks" / ".DS_Store").write_bytes(b"")

    (sentence,) = read(folder).warnings

    assert sentence == "2 files were left out: 1 ending in .mov, 1 made by the operating system (.DS_Store)."


def test_folder_without_enough_images_is_refused(streets, tmp_path):
    (tmp_path / "none" / "images").mkdir(parents=True)
    (tmp_path / "none" / "masks").mkdir()

    with pytest.raises(CannotTrain, match="no images"):
        read(tmp_path / "none")
    with pytest.raises(CannotTrain, match="is not a folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(CannotTrain, match="only one image"):
        read(streets(1))


def load_images(folder, **options):
    data = read(folder)
    task = Segmentation(data.classes.labels, 48, 36)
    return MaskedImages(data.train, data.classes, task, **options)


def test_validation_sample_equals_the_preprocessing_of_the_service(streets):
    samples = load_images(streets())

    batch = samples.__getitems__([(0, 2)])

    request = samples.task.parse({"image": samples.paths[2].read_bytes()}, Limits())
    served = samples.task.preprocess(samples.task.decode(request, Limits())).arrays["image"]
    assert torch.equal(batch["image"], torch.from_numpy(served.copy()))
    assert np.array_equal(batch["target"][0], samples.mask(2))
    assert (batch["target"][0, :, -2:] == IGNORED).all()


def test_panorama_gives_one_validation_sample_per_window(streets):
    samples = load_images(streets(size=(480, 36)))

    batch = samples.__getitems__([(0, index) for index in range(len(samples))])

    assert len(samples) == len(samples.pairs) * len(samples.task.windows(480, 36)[1])
    assert batch["target"].shape == (len(samples), 36, 48)
    assert torch.equal(batch["target"][0], torch.from_numpy(samples.mask(0)[:, :48]))


def fraction_matching(batch):
    """Fraction of the labelled pixels whose colour is nearest to that of their label."""
    colours = torch.tensor(list(PALETTE.values()), dtype=torch.float)
    nearest = torch.cdist(batch["image"].float().flatten(0, 2), colours).argmin(dim=1)
    target = batch["target"].flatten()
    return (nearest == target)[target != IGNORED].float().mean()


@pytest.mark.parametrize("crop", [(32, 24), (64, 64)], ids=["smaller", "larger than the image"])
def test_image_and_mask_are_augmented_together(streets, crop):
    samples = load_images(streets(), crop=crop, seed=5)

    batch = samples.__getitems__([(epoch, index) for epoch in range(4) for index in range(len(samples))])

    assert batch["image"].shape[1:] == (crop[1], crop[0], 3)
    assert fraction_matching(batch) > 0.93
    assert len({tuple(target.flatten().tolist()) for target in batch["target"]}) > len(samples)


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("size", [(480, 360), (400, 360), (61, 90), (700, 380), (33, 20)])
def test_crop_of_the_whole_input_without_augmentation_equals_the_validation_sample(streets, fit, size):
    data = read(streets(size=size))
    task = Segmentation(data.classes.labels, 48, 36, fit)
    trained = MaskedImages(data.train, data.classes, task, crop=(48, 36), augment=False)
    served = MaskedImages(data.train, data.classes, task)

    for index in range(3):
        expected, sample = served.sample((0, index)), trained.sample((7, index))

        assert torch.equal(sample["image"], expected["image"])
        assert (sample["target"] == expected["target"]).float().mean() > 0.98


@pytest.mark.parametrize(("fit", "aspect"), [("pad", 1.0), ("squash", 0.5)])
def test_augmentation_stretches_an_image_as_much_as_the_service(streets, fit, aspect):
    data = read(streets(size=(240, 360)))
    task = Segmentation(data.classes.labels, 120, 90, fit)
    samples = MaskedImages(data.train, data.classes, task, crop=(200, 200), augment=True)

    for epoch in range(10):
        known = samples.sample((epoch, 0))["target"] != IGNORED
        rows, columns = (known.any(dim=axis).nonzero() for axis in (1, 0))

        height, width = (int(span.max() - span.min()) + 1 for span in (rows, columns))
        assert height / width == pytest.approx(360 / 240 * aspect, rel=0.05)


def test_augmentation_depends_only_on_seed_epoch_and_image(streets):
    samples = load_images(streets(), crop=(32, 24), seed=5)
    keys = [(0, 1), (0, 2)]

    torch.manual_seed(1)
    first = samples.__getitems__(keys)
    torch.manual_seed(2)
    second = samples.__getitems__(keys)

    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["target"], second["target"])
    assert not torch.equal(first["image"], samples.__getitems__([(1, 1), (1, 2)])["image"])


@given(st.integers(1, 300), st.integers(1, 300))
def test_mask_of_any_size_is_projected_onto_its_image(width, height):
    task = Segmentation(("a", "b"), 32, 24)
    mask = np.zeros((height, width), np.uint8)
    samples = task.preprocess(DecodedImage(Image.new("RGB", (width, height)), width, height))

    target = project_mask(mask, samples.context.frames[0], 32, 24)

    assert target.shape == (24, 32)
    assert (target == 0).any()
    assert set(np.unique(target)) <= {0, IGNORED}


def test_pixels_outside_the_image_have_no_label():
    target = project_mask(np.ones((10, 10), np.uint8), Frame(10, 10, 1.0, 1.0, 3.0, 0.0), 16, 10)

    assert (target[:, 3:13] == 1).all()
    assert (target[:, :3] == IGNORED).all()
    assert (target[:, 13:] == IGNORED).all()


def test_common_suffix_of_the_mask_names_is_ignored(streets):
    folder = streets()
    for path in sorted((folder / "masks").iterdir()):
        path.rename(path.with_stem(path.stem + "_P"))

    assert len(read(folder).train) + len(read(folder).validation) == 8


def test_two_masks_or_images_of_the_same_name_are_refused(streets):
    folder = streets()
    shutil.copy(folder / "masks" / "003.png", folder / "masks" / "003.bmp")

    with pytest.raises(CannotTrain, match=r"003\.bmp and 003\.png have the same name except for the extension"):
        read(folder)


def test_labels_that_occur_on_one_side_of_the_split_only_are_named(streets):
    streets(4, "train", "trainannot")
    folder = streets(2, "val", "valannot", first=50, codes="sky\nroad\nVoid\nhouse\ntree\n")
    for path in (folder / "valannot").iterdir():
        mask = np.asarray(Image.open(path)).copy()
        mask[mask == 3] = 0
        Image.fromarray(mask).save(path)

    warnings = read(folder).warnings

    assert "These labels cannot be learnt, since no training mask contains them: 'tree'." in warnings
    assert "These labels are not measured, since no validation mask contains them: 'house'." in warnings


def test_images_outside_the_folders_that_are_read_are_counted(streets):
    streets(4, "train", "trainannot")
    streets(2, "val", "valannot", first=50)
    folder = streets(3, "test", "testannot", first=80)

    (sentence,) = read(folder).warnings

    assert sentence.startswith("6 image files in ")
    assert sentence.endswith("(test, testannot) were not used; only train, trainannot, val, valannot are read.")
