"""The recommender: its network, the exported module, the learner, and its golden requests."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks._items import LENGTH_BUCKETS, NO_RATING, UserHistory
from tests.training.learners.shop import write_shop
from training.core.errors import CannotTrain
from training.data.download import Fetcher
from training.engine.runtime import Runtime
from training.evaluation.embeddings import write_embeddings
from training.learners.recommendations import metrics
from training.learners.recommendations.dataset import EvalQueries
from training.learners.recommendations.learner import Options, RecommendationsLearner
from training.learners.recommendations.network import RecommenderNetwork, ServedRecommender, rank_bands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def learner(folder):
    options = Options(liked=4.0, features=("genres",), embedding_size=8)
    settings = RecommendationsLearner.default_settings
    return RecommendationsLearner.from_data(folder, settings, options, Fetcher(folder))


@pytest.fixture(scope="module")
def served(learner):
    return served_by(learner)


def served_by(learner):
    """Return the module to export of a network with random weights."""
    torch.manual_seed(0)
    network = learner.network().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return learner.to_inference_module(network)


def outputs_for(served, task, histories, length=None):
    arrays = [dict(task.preprocess(history).arrays) for history in histories]
    for inputs in arrays if length else ():
        for name in ("history", "levels"):
            inputs[name] = np.pad(inputs[name], ((0, 0), (0, length - inputs[name].shape[1])))
    stacked = [torch.from_numpy(np.concatenate([inputs[spec.name] for inputs in arrays])) for spec in task.inputs]
    with torch.no_grad():
        return [output.numpy() for output in served(*stacked)]


def test_rank_bands_widen():
    assert rank_bands(10).tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6]


@given(st.integers(0, 3), st.sampled_from(LENGTH_BUCKETS[1:]))
def test_outputs_depend_neither_on_the_length_bucket_nor_on_the_batch(learner, served, seed, length):
    random = np.random.default_rng(seed)
    histories = []
    for count in (0, 1, 3, 8):
        numbers = random.permutation(24)[:count] + 1
        histories.append(UserHistory(tuple(numbers.tolist()), tuple(random.integers(0, 3, count).tolist())))

    batched = outputs_for(served, learner.task, histories)
    padded = outputs_for(served, learner.task, histories, length)
    alone = [outputs_for(served, learner.task, [history]) for history in histories]

    for i, output in enumerate(batched):
        np.testing.assert_allclose(output, padded[i], atol=1e-5)
        np.testing.assert_allclose(output, np.concatenate([outputs[i] for outputs in alone]), atol=1e-5)


def test_reason_is_the_liked_item_with_the_largest_contribution_to_the_score(learner, served):
    assert isinstance(served, ServedRecommender)
    numbers, levels = (3, 8, 20, 11), (2, 1, 2, NO_RATING)

    rows, _, because, contributions = outputs_for(served, learner.task, [UserHistory(numbers, levels)])

    recommended = torch.from_numpy(rows[0]) + 1
    with torch.no_grad():
        parts = served.user_embedding(torch.tensor([numbers]), torch.tensor([levels]))[1][0]
        scores = parts @ served.target_embeddings[rows[0]].T
    scores = scores.masked_fill(torch.tensor(numbers).unsqueeze(1) == recommended, -torch.inf)
    liked = scores[[0, 2, 3]]
    assert because[0].tolist() == np.array([0, 2, 3])[liked.argmax(dim=0).numpy()].tolist()
    np.testing.assert_allclose(contributions[0], liked.max(dim=0).values.numpy(), atol=1e-6)
    assert not (because == 1).any()


def test_probabilities_of_candidates_sum_to_one(learner, served):
    history = UserHistory((1, 2), (2, 2), frozenset({1, 2, 5}))

    _, scores, _, _ = outputs_for(served, learner.task, [history])

    assert sorted(scores[0])[:3] == [-2, -2, -2]
    assert scores[0][scores[0] > -1].sum() == pytest.approx(1, abs=1e-5)


def test_empty_history_gets_the_most_liked_items(learner, served):
    rows, scores, _, contributions = outputs_for(served, learner.task, [UserHistory((), ())])

    likes = learner.ratings.likes[rows[0]]
    assert likes.tolist() == sorted(likes.tolist(), reverse=True)
    np.testing.assert_allclose(scores[0], likes / likes.sum(), atol=1e-3)
    assert not contributions.any()


def test_similar_items_are_ranked_by_cosine(learner, served):
    history = UserHistory((5,), (0,), frozenset({5}), similar=True)

    rows, scores, _, _ = outputs_for(served, learner.task, [history])

    unit = served.target_embeddings / served.target_embeddings.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(scores[0][:-1], (unit @ unit[4])[rows[0][:-1]].numpy(), atol=2e-3)
    assert 4 not in rows[0][:-1]
    assert scores[0][-1] < -1


def test_order_of_a_history_matters_only_with_times(tmp_path, learner):
    options = Options(liked=4.0, embedding_size=8)
    unordered = RecommendationsLearner(write_shop(tmp_path, times=False), learner.settings, options)
    first, second = UserHistory((1, 2, 3), (2, 1, 2)), UserHistory((3, 2, 1), (2, 1, 2))

    for trained, same in ((learner, False), (unordered, True)):
        module = served_by(trained)
        scores = [outputs_for(module, trained.task, [history])[1] for history in (first, second)]
        assert np.allclose(*scores, atol=1e-6) == same


def test_scores_of_the_learner_equal_the_metrics_of_its_lists(learner):
    torch.manual_seed(3)
    network = learner.network().eval()
    assert isinstance(network, RecommenderNetwork)
    scores = learner.scores(network, Runtime(torch.device("cpu")))

    queries = EvalQueries(learner.ratings, test=False)
    batch = queries.__getitems__([(0, i) for i in range(len(queries))])
    with torch.no_grad():
        logits = network(*(batch[spec.name] for spec in learner.task.inputs))[0].numpy()
    lists = metrics.top_k_items(logits, [query.history.tolist() for query in queries.queries], 10)
    targets = [[query.target] for query in queries.queries]
    assert scores["ndcg_at_10"] == pytest.approx(float(metrics.ndcg(lists, targets).mean()), abs=1e-5)
    assert scores["hit_rate_at_10"] == pytest.approx(metrics.hit_rate(lists, targets))


def test_embeddings_are_of_items_and_of_users(learner, tmp_path):
    torch.manual_seed(0)
    tables = learner.embeddings(learner.network())

    assert [(table.field, table.vectors.shape) for table in tables] == [("item", (24, 8)), ("user", (40, 8))]
    assert tables[0].names[0] == "Even 0"
    assert write_embeddings(tmp_path / "e.parquet", tables) == 64


def test_options_that_do_not_fit_the_data_are_errors(folder):
    settings = RecommendationsLearner.default_settings
    with pytest.raises(CannotTrain, match=r"--features colour: .* its columns are: genres"):
        RecommendationsLearner(folder, settings, Options(features=("colour",)))
    with pytest.raises(CannotTrain, match="--window must be at most 512"):
        RecommendationsLearner.from_data(folder, settings, Options(window=513), Fetcher(folder))


def test_golden_requests_name_no_user_if_users_are_not_kept(folder):
    options = Options(liked=4.0, embedding_size=8, keep_users=False)
    settings = RecommendationsLearner.default_settings
    learner = RecommendationsLearner.from_data(folder, settings, options, Fetcher(folder))
    served = served_by(learner)

    task, requests = learner.golden_requests(served)

    def run(arrays):
        with torch.no_grad():
            outputs = served(*(torch.from_numpy(arrays[spec.name]) for spec in task.inputs))
        return {spec.name: output.numpy() for spec, output in zip(task.outputs, outputs, strict=True)}

    assert (task.users, task.example_user) == ({}, "")
    assert len(requests) == 5
    assert not any("user" in request for request in [*requests, *task.examples()])
    assert all(task.answer(run, request).plain()["items"] for request in [*requests, *task.examples()])
