from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.learners.classification.multilabel import describe_failures
from training.learners.classification.multilabel_metrics import (
    best_constant,
    best_thresholds,
    cross_fitted_predictions,
    f_score,
    image_f1,
    mean_precision,
    micro_f1,
    multilabel_metrics,
    per_label_table,
    sigmoid_at_temperature,
)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=40))
def test_no_threshold_has_a_higher_f1_than_the_best(samples):
    probabilities = np.array([[value / 20] for value, _ in samples])
    targets = np.array([[int(positive)] for _, positive in samples])

    (best,) = best_thresholds(probabilities, targets)

    def f1(threshold):
        predictions = probabilities >= threshold
        true_positives = int((predictions & (targets == 1)).sum())
        return 2 * true_positives / max(1, int(predictions.sum() + targets.sum()))

    assert f1(best) >= max(f1(threshold) for threshold in np.linspace(-0.01, 1.01, 103)) - 1e-9


def test_cross_fitted_thresholds_score_no_better_than_those_tuned_on_the_same_samples():
    generator = np.random.default_rng(0)
    targets = (generator.random((60, 3)) < 0.4).astype(int)
    probabilities = (targets * 0.3 + generator.random((60, 3)) * 0.7).clip(0, 1)
    thresholds = best_thresholds(probabilities, targets)

    metrics = multilabel_metrics(probabilities, probabilities, targets, thresholds, "60 images")

    values = {metric.name: metric.value for metric in metrics}
    cross_fitted = cross_fitted_predictions(probabilities, targets)
    assert values["micro_f1_crossed"] == pytest.approx(f_score(cross_fitted, targets))
    assert values["micro_f1_crossed"] <= values["micro_f1"]
    assert 0 < values["f2"] <= 1


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=12))
def test_no_constant_set_of_labels_has_a_higher_f1_than_the_best(rows):
    train = np.array(rows).astype(int)

    def f1(labels):
        predictions = np.zeros(train.shape, bool)
        predictions[:, list(labels)] = True
        return micro_f1(predictions, train)(np.arange(len(train)))

    sets = [labels for size in (1, 2, 3) for labels in combinations(range(3), size)]
    assert f1(best_constant(train)) == pytest.approx(max(f1(labels) for labels in sets))


def test_micro_f1_of_selected_images_is_that_of_scikit_learn():
    generator = np.random.default_rng(1)
    targets, predictions = ((generator.random((30, 3)) < 0.4).astype(int) for _ in range(2))
    indices = generator.integers(0, 30, 30)

    value = micro_f1(predictions.astype(bool), targets)(indices)

    assert value == pytest.approx(f_score(predictions[indices].astype(bool), targets[indices]))


def test_an_image_without_labels_is_right_if_none_is_predicted():
    predictions = np.array([[False, False], [True, False], [True, True]])

    assert image_f1(predictions, np.array([[0, 0], [0, 0], [1, 0]])).tolist() == [1.0, 0.0, pytest.approx(2 / 3)]


def test_a_temperature_is_undone_with_probabilities_alone():
    logits = np.array([[2.0, -1.0, 0.5]])

    sharp = 1 / (1 + np.exp(-logits / 0.4))

    np.testing.assert_allclose(sigmoid_at_temperature(sharp, 1 / 0.4), 1 / (1 + np.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_hardly_any_images_and_no_label_have_finite_metrics(count):
    probabilities, targets = np.full((count, 2), 0.3), np.zeros((count, 2), int)

    metrics = multilabel_metrics(probabilities, probabilities, targets, (0.5, 0.5), "images", is_calibrated=False)

    values = {metric.name: metric.value for metric in metrics}
    assert all(np.isfinite(value) for value in values.values())
    assert "mean_average_precision" not in values
    assert ("micro_f1_crossed" in values) == (count > 1)
    assert mean_precision(probabilities, targets) == 0.0


def test_the_table_has_no_figures_for_a_label_that_no_image_has():
    probabilities, targets = np.array([[0.9, 0.1], [0.2, 0.1]]), np.array([[1, 0], [0, 0]])

    table = per_label_table(probabilities, targets, (0.5, 0.5), ("a", "b"))

    assert table.rows[1][2:] == ("–", "–", "–", "–", "0")
    assert "no image has it" in table.note


def test_failures_are_those_of_labels_with_mistakes():
    targets = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    predictions = np.array([[1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0]]).astype(bool)

    sentences = describe_failures(predictions, targets, ("right", "mixed", "never", "absent"))

    assert sentences == (
        "'never' is not predicted for the only image that has it, nor for others.",
        "'mixed' has an F1 of 0.500: it is predicted for 1 of the 2 validation images that have it, and for 1 others.",
    )
    assert describe_failures(targets.astype(bool), targets, ("a", "b", "c", "d")) == ()
