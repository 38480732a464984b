"""Error metrics of regression."""

import numpy as np
import pytest

from training.core.errors import CannotTrain
from training.core.results import SampleScores
from training.learners.tabular.regression_metrics import (
    best_constant,
    compare_errors,
    compute_error,
    r2,
    row_errors,
    select_metrics,
)


def test_allowed_metrics_follow_from_the_signs_of_the_target():
    assert select_metrics(np.array([1.0, 2.0]), log=True, preferred="auto") == ("rmsle", "rmspe", "rmse", "mae")
    assert select_metrics(np.array([0.0, 2.0]), log=False, preferred="auto") == ("rmse", "rmsle", "mae")
    assert select_metrics(np.array([-1.0, 2.0]), log=False, preferred="mae") == ("mae", "rmse")
    with pytest.raises(CannotTrain, match="--metric rmspe needs a target whose values are all above zero"):
        select_metrics(np.array([0.0, 2.0]), log=False, preferred="rmspe")


def test_errors_follow_their_formulas():
    predicted, true = np.array([2.0, 4.0]), np.array([1.0, 8.0])

    assert compute_error("rmse", predicted, true) == pytest.approx(np.sqrt(17 / 2))
    assert compute_error("mae", predicted, true) == 2.5
    assert compute_error("rmspe", predicted, true) == pytest.approx(np.sqrt((1 + 0.25) / 2))
    assert compute_error("rmsle", predicted, true) == pytest.approx(
        np.sqrt((np.log(1.5) ** 2 + np.log(5 / 9) ** 2) / 2)
    )
    assert r2(true, true) == 1
    assert r2(np.full(2, 4.5), true) == 0


@pytest.mark.parametrize("metric", ["rmse", "mae", "rmsle", "rmspe"])
def test_no_other_constant_has_a_smaller_error(metric):
    values = np.random.default_rng(0).lognormal(1, 1, 201)
    best = best_constant(metric, values)

    errors = [compute_error(metric, np.full(201, best * factor), values) for factor in (0.97, 1, 1.03)]

    assert errors[1] == min(errors)


@pytest.mark.parametrize("metric", ["rmse", "mae"])
def test_comparison_states_the_metric_itself_and_not_its_square(metric):
    random = np.random.default_rng(0)
    true = random.normal(0, 10, 300)
    good, poor = true + random.normal(0, 1, 300), true + random.normal(0, 3, 300)
    scores = SampleScores("errors", row_errors(metric, good, true), "rows", lower_is_better=True)

    comparison = compare_errors(metric, "another", scores, row_errors(metric, poor, true))

    assert comparison.metric == metric
    assert comparison.value == pytest.approx(compute_error(metric, good, true))
    assert comparison.other_value == pytest.approx(compute_error(metric, poor, true))
    assert comparison.interval[0] < comparison.gain < comparison.interval[1]
    assert comparison.verdict == "surely better"
