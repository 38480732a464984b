"""Error metrics of regression."""

import numpy as np
import pytest

from training.core.errors import CannotTrain
from training.learners.tabular.regression_metrics import compute_error, r2, select_metrics


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
