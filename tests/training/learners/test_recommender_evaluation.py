"""The evaluation of a recommender: measured on the exported file, compared with baselines, in sentences that hold."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from tests.training.learners.shop import write_shop
from training.core.errors import CannotTrain
from training.core.results import Trained
from training.learners.recommendations.learner import Options, RecommendationsLearner
from training.publishing.publish import refuse_worse_model


class FixedLists(nn.Module):
    """Stands for an exported file: lists the candidates in the order of `score_items(history, levels)`."""

    def __init__(self, length, score_items):
        super().__init__()
        self.length, self.score_items = length, score_items

    def forward(self, history, levels, candidates, similar):
        scores = self.score_items(history, levels).masked_fill(candidates == 0, -np.inf)
        best = scores.topk(self.length)
        shown = torch.where(best.values.isfinite(), torch.zeros(()), torch.full((), -2.0))
        return best.indices, shown, torch.zeros_like(best.indices), torch.zeros_like(shown)


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    folder = write_shop(tmp_path_factory.mktemp("shop"), users=120)
    options = Options(liked=4.0, features=("genres",), embedding_size=8)
    return RecommendationsLearner(folder, RecommendationsLearner.default_settings, options)


def evaluate(learner, score_items):
    torch.manual_seed(0)
    network = learner.network().eval()
    exported = FixedLists(learner.task.list_length, score_items)
    return learner.evaluate([Trained(0, network, {})], learner.to_inference_module(network), exported), exported


def of_the_kind_liked(learner):
    """Score the items of the kind (even, odd) that a user likes above the others."""
    is_even = torch.tensor([int(identifier) % 2 == 0 for identifier in learner.task.items.ids[: learner.task.known]])
    liked = learner.task.scale.liked_from

    def score(history, levels):
        rows = zip(history, levels, strict=True)
        likes_even = [bool(is_even[row[level >= liked] - 1].float().mean() > 0.5) for row, level in rows]
        return (is_even == torch.tensor(likes_even)[:, None]).float()

    return score


def never_liked(learner):
    score = of_the_kind_liked(learner)
    return lambda history, levels: -score(history, levels)


def test_metrics_are_those_of_the_exported_file(learner):
    good, exported = evaluate(learner, of_the_kind_liked(learner))
    bad, _ = evaluate(learner, never_liked(learner))

    values = [{metric.name: metric.value for metric in evaluation.metrics} for evaluation in (good, bad)]
    assert values[0]["ndcg_at_10"] > 0.3
    assert values[1]["ndcg_at_10"] < 0.1
    assert values[0]["hit_rate_at_10"] > values[1]["hit_rate_at_10"]
    scores = learner.sample_scores(exported)
    assert scores.values.mean() == pytest.approx(values[0]["ndcg_at_10"])
    assert len(scores.values) == len(learner.test)


def test_model_that_is_worse_than_both_baselines_says_so_and_is_refused(learner):
    evaluation, _ = evaluate(learner, never_liked(learner))

    verdicts = {comparison.other: comparison.verdict for comparison in evaluation.comparisons}
    assert verdicts == {
        "recommending the most liked items to everyone": "surely worse",
        "co-occurrence of items (SAR, tuned)": "surely worse",
    }
    assert not any("gain" in note for note in evaluation.notes), "The comparisons say it."
    with pytest.raises(CannotTrain, match=r"surely worse than recommending the most liked items .*--anyway"):
        refuse_worse_model(evaluation)


def test_model_that_finds_what_users_like_is_better_than_popularity(learner):
    evaluation, _ = evaluate(learner, of_the_kind_liked(learner))

    assert evaluation.comparisons[0].verdict == "surely better"
    refuse_worse_model(replace(evaluation, comparisons=evaluation.comparisons[:1]))


def test_what_does_not_happen_is_no_failure(tmp_path):
    folder = write_shop(tmp_path, users=60, items=10)
    (folder / "movies.csv").unlink()
    learner = RecommendationsLearner(folder, RecommendationsLearner.default_settings, Options(embedding_size=8))

    evaluation, _ = evaluate(learner, lambda history, levels: torch.ones(len(history), learner.task.known))

    assert evaluation.failures == (), "Ten of ten items are recommended: nothing is missed."


def test_table_of_features_that_no_test_item_has_says_why_it_is_empty(tmp_path):
    folder = write_shop(tmp_path, users=12)
    table = pl.read_csv(folder / "movies.csv").with_columns(genres=pl.lit(None, pl.String))
    table[-1, "genres"] = "of an item that nobody rated"
    table.write_csv(folder / "movies.csv")
    options = Options(features=("genres",), embedding_size=8)
    learner = RecommendationsLearner(folder, RecommendationsLearner.default_settings, options)

    evaluation, _ = evaluate(learner, lambda history, levels: torch.ones(len(history), learner.task.known))

    (by_genre,) = (table for table in evaluation.tables if table.title == "By genres")
    assert (by_genre.rows, by_genre.note) == ((), "No test item has a value of genres.")


def test_versions_with_other_items_are_not_compared(learner):
    task = learner.task
    swapped = replace(task.items, ids=(task.items.ids[1], task.items.ids[0], *task.items.ids[2:]))

    assert learner.is_comparable(replace(task, users={}))
    assert not learner.is_comparable(replace(task, items=swapped))
    assert not learner.is_comparable(replace(task, ordered=False))
