import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.calibration import (
    expected_calibration_error,
    fit_blend_weights,
    fit_temperature,
    reliability_bins,
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
