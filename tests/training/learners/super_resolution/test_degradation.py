import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.training.learners.super_resolution.scenes import draw_scene
from training.learners.super_resolution.degradation import (
    CropSampler,
    DegradationParams,
    crop_to_multiple,
    degrade,
    downscale,
)
from training.learners.super_resolution.metrics import psnr

BODY = "shufflenet_v2_x0_5"


def test_degradation_depends_only_on_the_generator():
    first, same, other = (
        degrade(draw_scene(), 2, DegradationParams(), np.random.default_rng(seed)) for seed in (3, 3, 4)
    )

    assert np.array_equal(first.pixels, same.pixels)
    assert np.array_equal(first.text_mask, same.text_mask)
    assert not np.array_equal(first.pixels, other.pixels)


def test_size_and_jpeg_quality_are_as_configured():
    images = [degrade(draw_scene(), 3, DegradationParams(20, 30), np.random.default_rng(seed)) for seed in range(30)]

    assert {image.pixels.shape for image in images} == {(30, 40, 3)}
    assert all(20 <= image.quality <= 30 for image in images)


def test_pixels_without_text_change_only_by_jpeg():
    degraded = degrade(draw_scene(), 2, DegradationParams(100, 100), np.random.default_rng(0))
    plain = np.asarray(draw_scene().resize((60, 45), Image.Resampling.BOX)).astype(int)
    far = np.abs(degraded.pixels.astype(int) - plain).max(axis=2) > 70

    assert degraded.text_mask.any()
    assert not degraded.text_mask.all()
    assert far[degraded.text_mask].mean() > 0.2
    assert far[~degraded.text_mask].mean() < 0.05


def test_fractions_with_text_and_without_degradation_are_as_configured():
    random = np.random.default_rng(0)
    params = DegradationParams(text_fraction=0.5, clean_fraction=0.4)
    images = [degrade(draw_scene(), 2, params, random) for _ in range(300)]
    degraded = [image for image in images if image.quality is not None]

    assert 0.5 < len(degraded) / len(images) < 0.7
    assert 0.35 < sum(image.text_mask.any() for image in degraded) / len(degraded) < 0.65


def test_downscale_is_bicubic_resizing():
    degraded = downscale(draw_scene(), 2)

    assert np.array_equal(np.asarray(draw_scene().resize((60, 45), Image.Resampling.BICUBIC)), degraded.pixels)
    assert not degraded.text_mask.any()
    assert degraded.quality is None


@settings(max_examples=30)
@given(st.integers(1, 100), st.integers(1, 100), st.integers(2, 4), st.integers(0, 100))
def test_crops_of_an_image_of_any_size_have_one_shape(width, height, scale, seed):
    crops = CropSampler(32, scale, DegradationParams(text_fraction=0.7, clean_fraction=0.25))

    degraded, original = crops.draw(draw_scene(width, height), np.random.default_rng(seed))

    assert degraded.pixels.shape == (32, 32, 3)
    assert original.shape == (32 * scale, 32 * scale, 3)
    assert degraded.text_mask.shape == (32, 32)


def test_both_crops_of_a_pair_show_the_same_area():
    crops = CropSampler(32, 2, DegradationParams(clean_fraction=1.0))
    for seed in range(10):
        degraded, original = crops.draw(draw_scene(300, 200, seed), np.random.default_rng(seed))
        smaller = np.asarray(Image.fromarray(original).resize((32, 32), Image.Resampling.BICUBIC))

        assert psnr(smaller[2:-2, 2:-2], degraded.pixels[2:-2, 2:-2]) > 55


def test_jpeg_blocks_have_random_offsets():
    crops, wide = CropSampler(32, 2, DegradationParams(10, 10, text_fraction=0.0)), draw_scene(400, 400)
    phases = set()
    for seed in range(40):
        pixels = crops.draw(wide, np.random.default_rng(seed))[0].pixels.astype(int)
        steps = np.abs(np.diff(pixels.sum(axis=2), axis=1)).sum(axis=0)
        phases.add(int(np.argmax([steps[start::8].mean() for start in range(8)])))

    assert len(phases) > 4


def test_sides_are_cropped_to_multiples_of_the_scale():
    assert crop_to_multiple(draw_scene(121, 92), 4).size == (120, 92)
