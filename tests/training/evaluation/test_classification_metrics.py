import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.classification import (
    accuracy_interval_note,
    at_temperature,
    classification_metrics,
    classification_scores,
    confusion_matrix,
    mean_and_std,
    most_confused_table,
    per_class_table,
    wilson_interval,
)
from training.evaluation.subgroups import assign_groups, subgroup_table

LABELS = ("cat", "dog", "owl")


def make_probabilities(predicted, confidence=0.8):
    probabilities = np.full((len(predicted), 3), (1 - confidence) / 2)
    probabilities[np.arange(len(predicted)), predicted] = confidence
    return probabilities


def test_scores_of_a_known_case():
    targets, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 2])

    scores = classification_scores(make_probabilities(predicted), targets)

    assert scores["accuracy"] == pytest.approx(5 / 6)
    assert scores["macro_f1"] == pytest.approx((0.8 + 0.8 + 1) / 3)
    assert scores["calibration_error"] == pytest.approx(5 / 6 - 0.8)
    assert "roc_auc" not in scores


def test_a_class_without_samples_does_not_lower_the_mean_f1():
    targets, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1])

    scores = classification_scores(make_probabilities(predicted), targets)

    assert scores["macro_f1"] == pytest.approx(0.8)


def test_a_class_that_is_never_predicted_or_never_true_has_scores_too():
    targets, predicted = np.array([0, 1]), np.array([0, 0])

    table = per_class_table(make_probabilities(predicted), targets, LABELS)

    assert [row[0] for row in table.rows] == list(LABELS)
    assert classification_scores(make_probabilities(predicted), targets)["accuracy"] == 0.5


def test_the_most_confused_pairs_come_first_with_their_counts():
    targets, predicted = np.array([0] * 10 + [1] * 10), np.array([1] * 4 + [0] * 6 + [2] * 2 + [1] * 8)

    table = most_confused_table(confusion_matrix(make_probabilities(predicted), targets, LABELS), LABELS)

    assert table.rows == (("cat", "dog", "4", "40.0%"), ("dog", "owl", "2", "20.0%"))


def test_several_seeds_are_shown_with_their_standard_deviation():
    assert mean_and_std([0.9]) == "0.9000"
    assert mean_and_std([0.8, 0.9]) == "0.8500 ± 0.0707"


def test_subgroups_are_compared_and_small_ones_marked():
    column = pl.Series("sex", ["f"] * 150 + ["m"] * 150 + ["x"] * 5)
    targets = np.array([1] * 305)
    predicted = np.array([1] * 75 + [0] * 75 + [1] * 150 + [1] * 5)
    probabilities = np.stack([1 - predicted, predicted], axis=1).astype(float)

    table = subgroup_table(column, probabilities, targets, ("no", "yes"))

    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["f"] == ("150", "0.500", "1.000", "0.500", "0.500")
    assert rows["m"] == ("150", "1.000", "1.000", "1.000", "1.000")
    assert rows["x"][0] == "5*"
    assert "differ by 0.500" in table.note


@given(st.lists(st.one_of(st.none(), st.integers(0, 90)), min_size=40, max_size=80))
def test_each_number_is_within_the_band_it_is_assigned_to(values):
    names = assign_groups(pl.Series("age", values, dtype=pl.Int64))

    assert len(names) == len(values)
    for value, name in zip(values, names, strict=True):
        words = name.split()
        if value is None:
            assert name == "missing"
        elif name.startswith("up to"):
            assert value <= int(words[2])
        elif name.startswith("over"):
            assert value > int(words[1])
        elif len(words) == 3:
            assert int(words[0]) <= value <= int(words[2])


def test_rare_categories_share_a_group():
    names = assign_groups(pl.Series("city", [f"c{i}" for i in range(30) for _ in range(30 - i)]))

    assert len(set(names)) <= 14
    assert "other" in names


def test_fewer_samples_give_a_wider_interval():
    assert "0.881 to 0.940" in accuracy_interval_note(0.915, 341)
    assert "0.914 to 0.916" in accuracy_interval_note(0.915, 1_000_000)


@pytest.mark.parametrize(
    ("values", "edges"), [((0.0, 1.0), "0.2 to 0.4"), ((0.0, 0.01), "0.002 to 0.004"), ((0.0, 1e4), "2001 to 4000")]
)
def test_the_precision_of_band_edges_follows_the_range(values, edges):
    names = assign_groups(pl.Series("x", np.linspace(*values, 501)))

    assert sorted({names.count(name) for name in set(names)}) in ([100, 101], [99, 100, 101])
    assert edges in names


def test_a_temperature_is_undone_with_probabilities_alone():
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -90.0]])
    probabilities, sharp = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (logits, logits / 0.4))

    np.testing.assert_allclose(at_temperature(sharp, 1 / 0.4), probabilities, atol=1e-6)


def overconfident(count=400):
    """Probabilities of 0.95 of which 3 in 4 are right, and the same at a temperature that makes them 0.75."""
    predicted = np.arange(count) % 3
    targets = np.where(np.random.default_rng(0).random(count) < 0.75, predicted, (predicted + 1) % 3)
    return make_probabilities(predicted, 0.95), make_probabilities(predicted, 0.75), targets


def test_the_calibration_error_is_measured_on_samples_the_temperature_was_not_fitted_on():
    uncalibrated, calibrated, targets = overconfident()

    metrics = {m.name: m for m in classification_metrics(calibrated, uncalibrated, targets, "400 images")}

    assert metrics["calibration_error_before"].value > 0.15
    assert metrics["calibration_error"].value < 0.06
    assert "each half with the temperature fitted on the other" in metrics["calibration_error"].protocol


def test_probabilities_that_are_not_calibrated_are_said_to_be_so():
    uncalibrated, _, targets = overconfident()

    metrics = {
        m.name: m
        for m in classification_metrics(uncalibrated, uncalibrated, targets, "400 images", is_calibrated=False)
    }

    assert metrics["calibration_error"].value > 0.15
    assert all("not calibrated" in metrics[name].protocol for name in ("calibration_error", "cross_entropy"))
    assert "calibration_error_before" not in metrics


def test_a_table_without_confusions_says_so():
    targets = np.array([0, 1, 2])

    table = most_confused_table(confusion_matrix(make_probabilities(targets), targets, LABELS), LABELS)

    assert table.rows == ()
    assert table.note == "No sample was given another class than its own."


@pytest.mark.parametrize("count", range(1, 60))
def test_the_interval_of_a_fraction_contains_it_even_at_0_and_1(count):
    for fraction in (0.0, 1.0):
        low, high = wilson_interval(fraction, count)

        assert 0 <= low <= fraction <= high <= 1
