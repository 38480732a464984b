import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.learners.classification.multilabel_metrics import (
    best_thresholds,
    cross_fitted_predictions,
    f_score,
    majority_predictions,
    multilabel_metrics,
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


def test_majority_baseline_predicts_labels_of_more_than_half_of_the_training_images():
    train = np.array([[1, 0], [1, 0], [0, 1]])

    assert majority_predictions(train, 2).tolist() == [[True, False], [True, False]]
