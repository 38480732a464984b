import math

import pytest

from tasks.manifest import Metric
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.recipe import DataCard, Recipe
from training.core.results import Comparison, Evaluation
from training.publishing.publish import Publication, publish, refuse_worse_model


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
    assert "does not train again" in message


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


def test_a_model_that_gives_the_constant_answer_itself_is_not_worse_by_a_rounding_error():
    refuse_worse_model(evaluation(value=0.1 + 0.2 - 1e-9, other_value=0.3, interval=(-1e-9, 1e-9), is_constant=True))


@pytest.mark.parametrize(
    ("value", "limits", "sentence"),
    [
        (0.5, {"min_metrics": (("accuracy", 0.9),)}, "accuracy is 0.5000; the recipe requires at least 0.9"),
        (0.5, {"max_metrics": (("accuracy", 0.1),)}, "accuracy is 0.5000; the recipe allows at most 0.1"),
        (0.5, {"min_metrics": (("accuracy_mean", 0.9),)}, r"limits accuracy_mean \(0.9\), which was not measured"),
        (math.nan, {}, "accuracy cannot be measured on these validation samples"),
        (math.nan, {"min_metrics": (("accuracy", 0.9),)}, "accuracy cannot be measured"),
    ],
)
def test_a_model_is_not_published_with_a_figure_beyond_the_recipe_s_limit_or_without_a_value(
    tmp_path, value, limits, sentence
):
    recipe = Recipe("pets", "classification", "", "", "", None, DataCard("pets", "CC0-1.0"), Settings(), None, **limits)
    measured = Evaluation((Metric(name="accuracy", value=value, protocol="on 10 images"),))

    with pytest.raises(CannotTrain, match=sentence):
        publish(Publication(recipe, measured, "", tmp_path, None), None, None, None)
    assert not list(tmp_path.iterdir())
