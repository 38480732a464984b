import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.calibration import (
    at_temperature_one,
    expected_calibration_error,
    reliability,
    shares,
    temperature,
)


def overconfident(factor: float, count: int = 4000):
    """Logits whose probabilities would be right if they were divided by `factor`, with targets drawn from them."""
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(count, 4, generator=generator) * 1.5
    targets = torch.multinomial(honest.softmax(dim=1), 1, generator=generator).squeeze(1)
    return honest * factor, targets


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_too_much_or_too_little_confidence(factor):
    logits, targets = overconfident(factor)

    assert temperature(logits, targets) == pytest.approx(factor, rel=0.1)


def test_calibrating_lowers_the_calibration_error():
    logits, targets = overconfident(3.0)

    before = expected_calibration_error(logits.softmax(dim=1).numpy(), targets.numpy())
    calibrated = (logits / temperature(logits, targets)).softmax(dim=1).numpy()

    assert before > 0.15
    assert expected_calibration_error(calibrated, targets.numpy()) < 0.03


@pytest.mark.parametrize("right", [True, False])
def test_samples_that_are_all_right_or_all_wrong_give_a_finite_temperature(right):
    logits = torch.tensor([[9.0, 0.0]] * 20)
    targets = torch.zeros(20, dtype=torch.long) if right else torch.ones(20, dtype=torch.long)

    assert 0.05 <= temperature(logits, targets) <= 20


@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 99))
def test_every_sample_is_in_one_bin_of_the_reliability_diagram(count, classes, seed):
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(classes), count)
    targets = random.integers(0, classes, count)

    assert sum(n for _, _, n in reliability(probabilities, targets)) == count
    assert 0 <= expected_calibration_error(probabilities, targets) <= 1


def test_probabilities_at_temperature_one_are_those_before_calibration():
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))

    found = at_temperature_one((logits / 2.5).softmax(dim=1).numpy(), 2.5)

    assert found == pytest.approx(logits.softmax(dim=1).numpy(), abs=1e-5)


def test_a_dozen_samples_that_are_all_right_do_not_ask_for_certainty():
    logits = torch.tensor([[2.0, -2.0], [-2.0, 2.0]] * 6)

    (share,) = shares([logits], torch.tensor([0, 1] * 6))

    assert 1.0 < share < 2.0
