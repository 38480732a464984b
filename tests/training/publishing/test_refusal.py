import math

import pytest

from tasks.manifest import Metric
from training.core.errors import CannotTrain
from training.core.results import Comparison, Evaluation
from training.publishing.publish import refuse_worse_model


def evaluation(**facts) -> Evaluation:
    comparison = Comparison(
        **{
            "other": "co-occurrence",
            "metric": "ndcg_at_10",
            "value": 0.021,
            "other_value": 0.115,
            "lower_is_better": False,
            "interval": (-0.12, -0.07),
            "count": 400,
            "samples": "users",
            **facts,
        }
    )
    return Evaluation((Metric(name="ndcg_at_10", value=0.021, protocol="of 400 users"),), comparisons=(comparison,))


def test_a_model_that_is_surely_worse_than_a_baseline_is_refused_with_the_figures_and_the_way_out():
    with pytest.raises(CannotTrain) as refused:
        refuse_worse_model(evaluation())

    message = str(refused.value)
    assert "surely worse than co-occurrence: ndcg_at_10 is 0.0210, not 0.1150 (on 400 users)" in message
    assert "--anyway" in message
    assert "--resume" in message


@pytest.mark.parametrize(
    "facts", [{"interval": (-0.12, 0.01)}, {"interval": (-math.inf, math.inf)}, {"value": 0.2, "interval": (0.05, 0.1)}]
)
def test_a_model_that_is_better_or_not_surely_worse_is_published(facts):
    refuse_worse_model(evaluation(**facts))


def test_a_model_that_is_worse_than_a_constant_answer_is_refused_even_without_certainty():
    constant = {"other": "always predicting 'cat'", "interval": (-0.2, 0.1), "is_constant": True}

    with pytest.raises(CannotTrain, match="the model is worse than always predicting 'cat'"):
        refuse_worse_model(evaluation(**constant))
    refuse_worse_model(evaluation(**constant, value=0.115))
