import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tasks._images import BORDER, DecodedImage
from tasks.classification import Classification
from tasks.contract import Limits
from tests.training.conftest import draw_image
from training.learners.classification.dataset import LabelledImages
from training.vision.augment import Augmentation, crop_at_random

STILL = Augmentation(min_crop_fraction=1, flip_probability=0, rotation_probability=0, colour_jitter=0)
ONLY_CROP = Augmentation(min_crop_fraction=0.5, flip_probability=0, rotation_probability=0, colour_jitter=0)
FITS = ("squash", "pad", "crop")


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("name", ["photo.jpg", "photo.png"])
@pytest.mark.parametrize("size", [(410, 170), (170, 411), (50, 30)], ids=["wide", "tall", "small"])
def test_without_randomness_a_training_sample_equals_what_the_service_computes(tmp_path, fit, name, size):
    draw_image((90, 140, 60), 3, size).save(tmp_path / name)
    task = Classification(("a", "b"), size=64, fit=fit)
    samples = LabelledImages([tmp_path / name], torch.tensor([1]), task, augment=STILL)

    trained = samples.sample((4, 0))["image"]

    request = task.parse({"image": (tmp_path / name).read_bytes()}, Limits())
    served = task.preprocess(task.decode(request, Limits())).arrays["image"][0]
    assert np.array_equal(trained.numpy(), served)


def disc_aspect(pixels):
    """Width divided by height of the red pixels."""
    red = (pixels[..., 0].astype(int) - pixels[..., 1]) > 100
    return np.ptp(np.flatnonzero(red.any(axis=0))) / np.ptp(np.flatnonzero(red.any(axis=1)))


def draw_disc(width, height):
    image = Image.new("RGB", (width, height), (40, 60, 50))
    x, y, radius = width / 2, height / 2, min(width, height) / 8
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=(250, 20, 20))
    return image


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(900, 400), (400, 900), (500, 500)], ids=["wide", "tall", "square"])
def test_objects_are_stretched_in_training_as_much_as_when_served(tmp_path, fit, size):
    draw_disc(*size).save(tmp_path / "disc.png")
    task = Classification(("a", "b"), size=160, fit=fit)
    served, trained = (
        LabelledImages([tmp_path / "disc.png"], torch.tensor([1]), task, augment=augment)
        for augment in (None, ONLY_CROP)
    )

    expected = disc_aspect(served.sample((0, 0))["image"].numpy())
    aspects = [disc_aspect(trained.sample((epoch, 0))["image"].numpy()) / expected for epoch in range(60)]

    assert 0.85 < math.exp(np.log(aspects).mean()) < 1.18
    assert max(aspects) / min(aspects) < 2.1
    if fit == "squash":
        assert max(aspects) / min(aspects) > 1.3, "the crops differ in shape"


def test_a_padded_training_image_has_its_border_where_the_service_puts_it(tmp_path):
    Image.new("RGB", (300, 100), (200, 30, 30)).save(tmp_path / "wide.png")
    task = Classification(("a", "b"), size=90, fit="pad")
    samples = LabelledImages([tmp_path / "wide.png"], torch.tensor([0]), task, augment=ONLY_CROP)

    for epoch in range(20):
        pixels = samples.sample((epoch, 0))["image"].numpy()

        is_border = (pixels == BORDER).all(axis=2)
        rows = np.flatnonzero(~is_border.all(axis=1))
        assert not is_border[rows].any()
        assert abs(rows[0] - (89 - rows[-1])) <= 1, "the image is centred"


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.02, 1), st.integers(0, 1000))
def test_a_crop_has_the_requested_area_and_about_the_shape_of_its_image(width, height, min_fraction, seed):
    torch.manual_seed(seed)
    image = DecodedImage(Image.new("RGB", (width, height)), 2 * width, 2 * height)

    crop = crop_at_random(image, min_fraction)

    crop_width, crop_height = crop.image.size
    assert crop_width <= width
    assert crop_height <= height
    if min(crop_width, crop_height) >= 20:
        assert crop_width * crop_height >= 0.92 * min_fraction * width * height
        assert 0.68 < crop_width / crop_height / (width / height) < 1.47
    assert crop.width / crop.image.width == pytest.approx(2, abs=0.51)


def test_every_part_of_an_image_is_seen_in_training():
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (100, 200, 3))
    image = DecodedImage(Image.fromarray(np.ascontiguousarray(ramp)), 200, 100)
    torch.manual_seed(0)

    crops = [np.asarray(crop_at_random(image, 0.3).image) for _ in range(200)]

    assert min(crop.min() for crop in crops) == 0
    assert max(crop.max() for crop in crops) == 199


def test_mirroring_rotation_and_colours_are_random():
    image = DecodedImage(draw_disc(80, 80), 80, 80)
    task = Classification(("a", "b"), size=48)
    torch.manual_seed(0)

    pixels = [
        Augmentation().apply(image, lambda crop: task.preprocess(crop).arrays["image"][0]).tobytes() for _ in range(20)
    ]

    assert len(set(pixels)) == 20
