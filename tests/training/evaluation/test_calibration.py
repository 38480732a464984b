import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.calibration import (
    calibrate,
    cross_fit,
    expected_calibration_error,
    fit_blend_weights,
    fit_temperature,
    reliability_bins,
    split_halves,
)


def overconfident_logits(factor: float, count: int = 4000):
    """Logits that are calibrated once divided by `factor`, and targets drawn from their probabilities."""
    generator = torch.Generator().manual_seed(0)
    calibrated = torch.randn(count, 4, generator=generator) * 1.5
    targets = torch.multinomial(calibrated.softmax(dim=1), 1, generator=generator).squeeze(1)
    return calibrated * factor, targets


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_corrects_over_and_underconfidence(factor):
    logits, targets = overconfident_logits(factor)

    assert fit_temperature(logits, targets) == pytest.approx(factor, rel=0.1)


def test_calibrating_lowers_the_calibration_error():
    logits, targets = overconfident_logits(3.0)

    before = expected_calibration_error(logits.softmax(dim=1).numpy(), targets.numpy())
    calibrated = (logits / fit_temperature(logits, targets)).softmax(dim=1).numpy()

    assert before > 0.15
    assert expected_calibration_error(calibrated, targets.numpy()) < 0.03


@pytest.mark.parametrize("correct", [True, False])
def test_samples_that_are_all_correct_or_all_wrong_give_a_finite_temperature(correct):
    logits = torch.tensor([[9.0, 0.0]] * 20)
    targets = torch.zeros(20, dtype=torch.long) if correct else torch.ones(20, dtype=torch.long)

    assert 0.05 <= fit_temperature(logits, targets) <= 20


def test_few_samples_are_not_calibrated_and_it_is_said_why():
    calibration = calibrate(*overconfident_logits(3.0, count=59), "validation images")

    assert calibration.temperature == 1.0
    assert calibration.caveat == (
        "The probabilities are not calibrated: 59 validation images; at least 200 are needed."
    )


def test_enough_samples_are_calibrated_without_a_caveat():
    logits, targets = overconfident_logits(3.0)

    calibration = calibrate(logits, targets, "validation images")

    assert calibration.temperature == fit_temperature(logits, targets)
    assert calibration.caveat == ""


def test_pixels_count_as_the_images_they_come_from():
    calibration = calibrate(*overconfident_logits(3.0), "validation images", count=1)

    assert calibration.reason == "1 validation image; at least 200 are needed"


@pytest.mark.parametrize("margin", [1.0, 9.0, 60.0])
def test_answers_that_are_all_right_are_not_calibrated(margin):
    logits = torch.tensor([[margin, 0.0]] * 400)

    calibration = calibrate(logits, torch.zeros(400, dtype=torch.long), "validation images")

    assert calibration.temperature == 1.0
    assert "almost every answer is right" in calibration.reason


def test_answers_that_are_all_wrong_are_not_calibrated():
    logits = torch.tensor([[9.0, 0.0]] * 400)

    calibration = calibrate(logits, torch.ones(400, dtype=torch.long), "validation images")

    assert calibration.temperature == 1.0
    assert "say next to nothing" in calibration.reason


def test_a_temperature_that_suits_one_half_only_does_not_calibrate_the_other():
    logits, targets = overconfident_logits(1.0, count=2000)
    half = torch.from_numpy(split_halves(2000))
    logits[half] *= 5.0

    scaled = cross_fit(logits, targets)

    error = expected_calibration_error(scaled.softmax(dim=1).numpy(), targets.numpy())
    fitted_on_all = (logits / fit_temperature(logits, targets)).softmax(dim=1).numpy()
    assert error > expected_calibration_error(fitted_on_all, targets.numpy())


def test_cross_fitting_calibrates_samples_that_resemble_each_other():
    logits, targets = overconfident_logits(3.0)

    scaled = cross_fit(logits, targets)

    assert expected_calibration_error(scaled.softmax(dim=1).numpy(), targets.numpy()) < 0.03


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_cross_fitting_copes_with_hardly_any_samples(count):
    logits = torch.randn(count, 3)

    assert cross_fit(logits, torch.zeros(count, dtype=torch.long)).isfinite().all()


def test_halves_do_not_split_groups():
    groups = np.array([7, 3, 7, 5, 3, 9, 5, 9])

    half = split_halves(len(groups), groups)

    assert half.sum() == 4
    assert all(len(set(half[groups == group])) == 1 for group in set(groups))


@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 99))
def test_every_sample_is_in_one_bin_of_the_reliability_diagram(count, classes, seed):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(classes), count)
    targets = random.integers(0, classes, count)

    assert sum(n for _, _, n in reliability_bins(probabilities, targets)) == count
    assert 0 <= expected_calibration_error(probabilities, targets) <= 1


def test_the_blend_weight_of_a_few_correct_samples_stays_moderate():
    logits = torch.tensor([[2.0, -2.0], [-2.0, 2.0]] * 6)

    (weight,) = fit_blend_weights([logits], torch.tensor([0, 1] * 6))

    assert 1.0 < weight < 2.0
