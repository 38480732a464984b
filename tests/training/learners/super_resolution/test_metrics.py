from dataclasses import replace

import numpy as np
import pytest

from tests.training.conftest import draw_image
from tests.training.learners.super_resolution.scenes import draw_scene
from training.learners.super_resolution.evaluate import (
    compute_metrics,
    describe_failures,
    describe_gains,
    table_by_jpeg_quality,
    table_by_set,
)
from training.learners.super_resolution.metrics import ImageResult, Quality, psnr, ssim, summarise


def test_psnr_follows_its_definition():
    original = np.full((8, 8, 3), 100, np.uint8)
    half = np.zeros((8, 8), bool)
    half[:4] = True
    restored = original + 5 * half[..., np.newaxis].astype(np.uint8)

    assert psnr(original + 5, original) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(restored, original, half) == pytest.approx(psnr(original + 5, original))
    assert psnr(restored, original, ~half) == psnr(original, original) > 60


def test_ssim_is_one_for_identical_images_and_falls_with_noise_and_shifts():
    original = np.asarray(draw_scene())
    noisy = np.asarray(draw_image((0, 0, 0), 0, (120, 90))) // 4 + original // 2

    assert ssim(original, original) == pytest.approx(1, abs=1e-5)
    assert ssim(noisy, original) < 0.9
    flat = [np.full((20, 20, 3), level, np.uint8) for level in (100, 120)]
    means = [level / 255 for level in (100, 120)]
    expected = (2 * means[0] * means[1] + 1e-4) / (means[0] ** 2 + means[1] ** 2 + 1e-4)
    assert ssim(*flat) == pytest.approx(expected, abs=1e-3)


def build_result(gain, quality, name="a.png", text_psnr=12.0):
    bicubic = Quality(25.0, 0.7, 0.5, 10.0, 27.0)
    return ImageResult(name, quality, replace(bicubic, psnr=25 + gain, text_psnr=text_psnr), bicubic)


def test_text_psnr_is_averaged_over_the_images_with_text():
    summary = summarise([build_result(2.0, 20), build_result(1.0, 60, text_psnr=None)])

    assert summary.psnr_gain == pytest.approx(1.5)
    assert summary.text_gain == pytest.approx(2.0)


def test_metrics_and_tables_compare_each_set_with_bicubic():
    degraded = {"validation": [build_result(2.0, 20), build_result(-1.0, 60, "b.png")], "Set5": [build_result(1, 35)]}
    clean = {name: [build_result(0.5, None)] for name in degraded}

    values = {metric.name: metric.value for metric in compute_metrics(degraded, clean)}
    table = table_by_jpeg_quality(degraded["validation"], "validation")

    assert values["psnr_gain"] == pytest.approx(0.5)
    assert values["clean_psnr_gain"] == pytest.approx(0.5)
    assert values["set5_psnr_gain"] == pytest.approx(1.0)
    assert [row[0] for row in table.rows] == ["20 to 20", "60 to 60"]
    assert [row[2] for row in table_by_set(degraded, clean).rows][:2] == ["25.50 / 25.00", "26.00 / 25.00"]
    assert "-1.00 dB (b.png, JPEG quality 60)" in describe_failures(degraded["validation"], clean["validation"])[0]


def test_images_that_all_gain_are_no_failures():
    gained = [build_result(2.0, 20, text_psnr=None), build_result(0.5, None, "b.png", text_psnr=None)]

    assert describe_failures(gained, gained) == ()
    assert describe_gains(gained) == (
        "On all 2 degraded validation images, the PSNR is higher than after bicubic resizing, by at least 0.50 dB "
        "(b.png)."
    )


def test_images_that_lose_are_counted_and_the_worst_is_named():
    results = [build_result(2.0, 20, text_psnr=None), build_result(-1.0, None, "b.png", text_psnr=None)]

    assert describe_failures(results, [build_result(1.0, None)]) == (
        "The smallest gain on a degraded image is -1.00 dB (b.png).",
        "1 of 2 degraded images is further from the original than after bicubic resizing.",
    )
    assert describe_gains(results).startswith("On 1 of 2 degraded validation images, the PSNR is higher")


def test_the_text_of_a_single_image_has_no_average():
    assert describe_failures([build_result(1.0, 20)], [build_result(1.0, None)]) == (
        "The content under text is guessed: the PSNR there is 12.0 dB (a.png).",
    )


def test_a_table_without_compressed_images_says_so():
    table = table_by_jpeg_quality([build_result(1.0, None)], "validation")

    assert (table.rows, table.note) == ((), "No image was compressed as JPEG.")
