from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks._images import DecodedImage, decode_image, fit_image
from tasks.contract import Limits
from tasks.keypoints import Keypoints
from tests.training.conftest import ROOT
from tests.training.learners.keypoints.tables import write_images
from training.engine.batches import make_loader
from training.engine.runtime import Runtime
from training.learners.keypoints.annotations import TableRules, read_keypoints
from training.learners.keypoints.dataset import AugmentParams, KeypointImages, augment_image

TASK = Keypoints(names=("left", "right"), size=32)
STILL = AugmentParams(max_rotation=0, min_scale=1, max_scale=1, max_shift=0, colour_jitter=0, erase_probability=0)


def draw_spots(size, points):
    """Spots of 9 pixels around the points, on black; the first is red, the second blue."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    for (left, top), channel in zip(points, (0, 2), strict=True):
        pixels[np.hypot(x - left, y - top) < 5, channel] = 255
    return Image.fromarray(pixels)


def centre_of(channel):
    y, x = np.mgrid[: channel.shape[0], : channel.shape[1]] + 0.5
    weight = np.where(channel > 100, channel, 0).astype(float)
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(90, 300), st.integers(90, 300), st.booleans())
def test_points_move_with_the_image(seed, width, height, flips):
    torch.manual_seed(seed)
    points = np.array([[0.35 * width, 0.4 * height], [0.6 * width, 0.55 * height]])
    params = AugmentParams(colour_jitter=0.0, erase_probability=0.0, flip_indices=(0, 1) if flips else ())

    image, moved = augment_image(draw_spots((width, height), points), points, 96, params)

    pixels = np.asarray(image).astype(int)
    inside = ((moved > 6) & (moved < 90)).all(axis=1)
    background = np.abs(pixels - np.array([124, 116, 104])).max(axis=2) < 12
    for point, channel, ok in zip(moved, (0, 2), inside, strict=True):
        if ok:
            level = np.where(background, 0, pixels[..., channel] - pixels[..., 1])
            assert np.abs(centre_of(level) - point).max() < 0.7


def test_flip_exchanges_the_points_of_a_pair():
    points = np.array([[40.0, 50.0], [60.0, 50.0]])
    params = replace(STILL, flip_indices=(1, 0))
    seen = set()

    for seed in range(8):
        torch.manual_seed(seed)
        image, moved = augment_image(draw_spots((100, 100), points), points, 100, params)
        is_red_left = np.asarray(image)[50, 40, 0] > 200
        seen.add(bool(is_red_left))

        assert moved[0, 0] < moved[1, 0], "the left point is on the left, flipped or not"

    assert seen == {True, False}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 3000), st.integers(20, 3000), st.floats(0.05, 0.45))
def test_points_that_fit_stay_inside_the_square(seed, width, height, reach):
    if max(width, height) > 8 * min(width, height):
        height = width
    torch.manual_seed(seed)
    centre, side = np.array([width / 2, height / 2]), min(width, height) * reach
    points = np.array([centre - side, centre + side, [np.nan, np.nan]])

    image, moved = augment_image(Image.new("RGB", (width, height)), points, 64, AugmentParams(max_scale=1.2))

    assert image.size == (64, 64)
    assert np.isnan(moved[2]).all()
    known = moved[:2][~np.isnan(moved[:2])]
    assert ((known >= 0) & (known <= 64)).all()
    if reach < 0.2:
        assert len(known) == 4


PHOTO = ROOT / "examples" / "faces-portrait.jpg"


@pytest.mark.parametrize("size", [64, 97, 150, 224])
def test_without_randomness_an_augmented_photo_looks_as_when_it_is_served(size):
    decoded = decode_image(PHOTO.read_bytes(), max_pixels=10**6)
    served, frame = fit_image(decoded, size, size, "pad")
    points = np.array([[60.0, 70.0], [120.0, 200.0]])

    augmented, moved = augment_image(decoded.image, points, size, STILL)

    assert np.abs(np.asarray(augmented).astype(int) - served).mean() < 0.6
    assert np.abs(moved - frame.to_network(points)).max() < 1e-9


@pytest.mark.parametrize("scale", [0.3, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("size", [100, 180])
def test_fine_texture_is_smoothed_as_by_the_service_at_any_scale(size, scale):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    side = round(size * scale)
    expected, _ = fit_image(DecodedImage(image, 300, 300), side, side, "pad")
    params = replace(STILL, min_scale=scale, max_scale=scale)

    augmented, _ = augment_image(image, np.array([[150.0, 150.0]]), size, params)

    inner = np.asarray(augmented)[size // 2 - side // 3 : size // 2 + side // 3, size // 2 - side // 3 :][
        :, : side // 2
    ]
    assert inner.std() == pytest.approx(expected.std(), rel=0.12)


def load_samples(folder, **options):
    data = read_keypoints(folder, TableRules(size=32))
    return KeypointImages(
        [image.path for image in data.images], [image.points for image in data.images], TASK, **options
    )


def test_sample_without_augmentation_equals_the_preprocessing_of_the_service(tmp_path):
    samples = load_samples(write_images(tmp_path / "d", 3))

    batch = samples.__getitems__([(0, 1)])

    request = TASK.parse({"image": samples.paths[1].read_bytes()}, Limits())
    served = TASK.preprocess(TASK.decode(request, Limits()))
    assert torch.equal(batch["image"], torch.from_numpy(served.arrays["image"].copy()))
    back = served.context[0].to_image(batch["target"][0].numpy())
    assert np.abs(back - samples.points[1]).max() < 1e-4


def test_points_of_a_photo_decoded_at_reduced_size_keep_their_position(tmp_path):
    draw_spots((4000, 3000), [(1000, 900), (2500, 1500)]).resize((2000, 1500)).save(tmp_path / "a.jpg")
    points = np.array([[500.0, 450.0], [1250.0, 750.0]])

    original, augmented = (
        KeypointImages([tmp_path / "a.jpg"], [points], TASK, augment=params).sample((0, 0))["target"].numpy()
        for params in (None, STILL)
    )

    # The sides of the reduced image are rounded up to whole pixels, which changes its scale slightly.
    assert np.abs(original - augmented).max() < 0.3


def test_augmentation_depends_only_on_seed_epoch_and_image_and_not_on_workers(tmp_path):
    samples = load_samples(write_images(tmp_path / "d", 6), seed=3, augment=AugmentParams())
    keys = [[(0, 1), (0, 2)], [(1, 1), (0, 5)]]
    runtime = Runtime(torch.device("cpu"))

    torch.manual_seed(1)
    without_workers = list(make_loader(samples, keys, runtime, workers=0))
    torch.manual_seed(2)
    with_workers = list(make_loader(samples, keys, runtime, workers=2))

    for name in ("image", "target"):
        assert all(
            torch.equal(first[name].nan_to_num(), second[name].nan_to_num())
            for first, second in zip(without_workers, with_workers, strict=True)
        )
    assert not torch.equal(without_workers[0]["image"][0], without_workers[1]["image"][0])
