import math

import numpy as np
import pytest
import torch

from training.evaluation.calibration import bin_by_confidence, mean_calibration_gap
from training.learners.keypoints import metrics
from training.learners.keypoints.network import uncalibrated_probability


def calibration_error(probabilities, correct):
    return mean_calibration_gap(bin_by_confidence(probabilities, correct))


def test_errors_are_relative_to_the_sizes_and_skip_missing_points():
    points = np.array([[[0.0, 0.0], [10.0, 0.0]], [[0.0, 0.0], [np.nan, np.nan]], [[5.0, 5.0], [25.0, 5.0]]])
    sizes = metrics.normalising_sizes(list(points), (0, 1), [1] * 3)

    errors = metrics.relative_errors(points + np.array([1.0, 0.0]), points, sizes)

    assert sizes.tolist() == pytest.approx([10.0, np.nan, 20.0], nan_ok=True)
    assert errors[0].tolist() == pytest.approx([0.1, 0.1])
    assert metrics.mean_error(errors) == pytest.approx((0.1 + 0.05) / 2)
    assert metrics.pck(errors, 0.07) == 0.5


def test_single_point_is_normalised_by_the_side_of_the_image():
    assert metrics.normalising_sizes([np.array([[3.0, 4.0]])], None, [200]).tolist() == [200.0]
    assert metrics.normalising_sizes([np.array([[0.0, 0.0], [3.0, 4.0]])], None, [200]).tolist() == [5.0]


def test_calibration_recovers_the_model_and_holds_on_other_groups():
    generator = torch.Generator().manual_seed(0)
    log_ratios = torch.randn(600, 5, generator=generator)
    probability = (2.0 * log_ratios + torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])).sigmoid()
    correct = torch.rand(600, 5, generator=generator) < probability
    known = torch.ones_like(correct)
    known[::7, 2] = False
    groups = [str(i % 30) for i in range(600)]

    fitted = metrics.fit_calibration(log_ratios, correct, known)
    cross_fitted = metrics.cross_fitted_probabilities(log_ratios, correct, known, groups)

    assert fitted.slope == pytest.approx(2.0, abs=0.4)
    assert fitted.offsets.tolist() == pytest.approx([-2, -1, 0, 1, 2], abs=0.5)
    observed, mask = correct.numpy()[known.numpy()], known.numpy()
    before = calibration_error(uncalibrated_probability(log_ratios).numpy()[mask], observed)
    assert calibration_error(cross_fitted.numpy()[mask], observed) < 0.04 < before


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_calibration_is_finite_if_all_points_are_correct_or_all_wrong(fraction):
    log_ratios = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    correct = torch.full((40, 3), fraction > 0.5)

    fitted = metrics.fit_calibration(log_ratios, correct, torch.ones_like(correct))

    assert fitted.offsets.isfinite().all()
    assert math.isfinite(fitted.slope)
    assert abs(float(fitted.probabilities(log_ratios).mean()) - fraction) < 0.1
    assert f"{'every' if fraction else 'no'} point is within the tolerance" in fitted.reason


def test_a_spread_that_says_nothing_about_the_error_is_not_called_a_calibration():
    generator = torch.Generator().manual_seed(0)
    log_ratios = torch.randn(400, 3, generator=generator)
    correct = torch.rand(400, 3, generator=generator) < (-log_ratios).sigmoid()

    fitted = metrics.fit_calibration(log_ratios, correct, torch.ones_like(correct))

    assert "says nothing about its error" in fitted.reason
    assert float(fitted.probabilities(log_ratios).mean()) == pytest.approx(float(correct.float().mean()), abs=0.02)


def test_bootstrap_interval_contains_the_mean():
    errors = np.random.default_rng(0).uniform(0, 0.1, (400, 4))

    few = metrics.bootstrap_interval(errors, [str(i % 10) for i in range(400)])
    many = metrics.bootstrap_interval(errors, [str(i) for i in range(400)])

    assert many[0] < metrics.mean_error(errors) < many[1]
    assert few[1] > few[0]


def test_groups_are_numbered_instead_of_named():
    errors = np.array([[0.3, 0.3], [0.1, 0.1], [0.2, np.nan], [np.nan, np.nan]])

    table = metrics.error_by_group(errors, ["Ann", "Bob", "Cid", "Dee"], "person")

    assert [row[0] for row in table.rows] == ["1 of 3", "2 of 3", "3 of 3"]
    assert [row[2] for row in table.rows] == ["30.0%", "20.0%", "10.0%"]
    assert not any(name in str(table) for name in ("Ann", "Bob", "Cid", "Dee"))


def test_points_form_parts_by_their_names_without_numbers():
    table = metrics.error_by_part(np.array([[0.1, 0.3, 0.02]]), ["eye_1", "eye_2", "nose"])

    assert [row[:3] for row in table.rows] == [("eye", "2", "20.0%"), ("nose", "1", "2.0%")]


def test_the_log_ratio_is_recovered_from_the_confidence():
    log_ratios = torch.linspace(-2, 2, 12).reshape(4, 3)
    fitted = metrics.ConfidenceCalibration(1.7, torch.tensor([0.3, -0.2, 1.0]))

    assert torch.allclose(fitted.log_ratios(fitted.probabilities(log_ratios)), log_ratios, atol=1e-3)


def test_the_confidence_that_is_not_calibrated_resembles_the_mass_of_the_gaussian():
    log_ratios = torch.linspace(-3, 3, 61).unsqueeze(1)

    confidence = metrics.gaussian_confidence(1, "few images").probabilities(log_ratios)

    assert (confidence - uncalibrated_probability(log_ratios)).abs().max() < 0.08


def test_an_image_without_points_has_neither_size_nor_error():
    points = np.full((2, 2, 2), np.nan)
    points[1] = [[0.0, 0.0], [3.0, 4.0]]

    sizes = metrics.normalising_sizes(list(points), None, [9, 9])
    means = metrics.image_errors(metrics.relative_errors(points + 1.0, points, sizes))

    assert np.isnan(sizes[0])
    assert np.isnan(means[0])
    assert means[1] == pytest.approx(math.sqrt(2) / 5)


def test_a_few_groups_have_no_confidence_interval():
    errors = np.full((10, 1), 0.1)

    assert metrics.bootstrap_interval(errors, ["a"] * 5 + ["b"] * 5) is None
    assert metrics.bootstrap_interval(errors[:9], list("abcdefghi")) is None
    assert metrics.bootstrap_interval(errors, list("abcdefghij")) == pytest.approx((0.1, 0.1))


def test_failures_are_only_those_there_are():
    names, confidence = ("eye_1", "eye_2", "nose"), np.tile([0.9, 0.8, 0.7], (4, 1))
    errors = np.full((4, 3), 0.01)

    assert metrics.describe_failures(errors, confidence, names, 0.05) == ()
    errors[0] = [0.2, 0.01, 0.3]
    assert metrics.describe_failures(errors, confidence, names, 0.05) == (
        "In 1 of 4 validation images, the mean error is above 10%.",
        "The weakest part is nose: its mean error is 8.2%, and 3 of its 4 points are within 5 %.",
        "Of the 4 points with the highest confidence (0.90 on average), 1 has an error above 5%.",
    )
    assert metrics.describe_failures(np.full((1, 3), np.nan), confidence[:1], names, 0.05) == ()


def test_a_single_part_is_not_the_weakest():
    errors = np.array([[0.08, 0.02]])

    assert metrics.describe_failures(errors, np.array([[0.1, 0.9]]), ("p1", "p2"), 0.05) == ()
