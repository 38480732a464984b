"""Recommendations in training: what is read, what is held out, what is measured, and that what is exported is right."""

import math
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks._items import LENGTH_BUCKETS, NO_RATING, UserHistory
from tasks.manifest import read_manifest
from tests.training.conftest import ROOT
from training.core.errors import CannotTrain
from training.data.download import Fetcher
from training.engine.runtime import Runtime
from training.evaluation.embeddings import write_embeddings
from training.learners.recommendations import metrics, sar
from training.learners.recommendations.dataset import NO_TARGET, EvalQueries, HistorySamples
from training.learners.recommendations.interactions import ColumnNames, kinds_of, read_ratings
from training.learners.recommendations.learner import Options, RecommendationsLearner
from training.learners.recommendations.network import ServedTaste, TasteNetwork, rank_bands
from training.learners.recommendations.sar import Sar
from training.publishing.export import onnx_runner
from training.publishing.publish import replay
from training.update_catalog import main as replace_items
from training.update_catalog import update_items


def shop(folder, *, times=True, ratings=True, users=40, items=24):
    """Two kinds of people, who like the even and the odd items; ratings.csv and items.csv."""
    random = np.random.default_rng(0)
    lines, day = [], 0
    for user in range(users):
        for item in random.permutation(items)[: 8 + user % 5]:
            day += 1
            liked = item % 2 == user % 2
            line = {"userId": user + 1, "movieId": int(item) + 100, "rating": 5 if liked else 1, "timestamp": day}
            lines.append(line)
    frame = pl.DataFrame(lines).sample(fraction=1.0, shuffle=True, seed=1)
    frame = frame.drop([*([] if times else ["timestamp"]), *([] if ratings else ["rating"])])
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_csv(folder / "ratings.csv")
    names = [f"{'Even' if i % 2 == 0 else 'Odd'} {i}" for i in range(items)]
    table = {
        "movieId": [*range(100, 100 + items), 999],
        "title": [*names, "Never rated"],
        "genres": ["a|b", "c"] * 12 + [""],
    }
    pl.DataFrame(table).write_csv(folder / "movies.csv")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def ratings(folder):
    return read_ratings(folder, ColumnNames(), liked=4.0, seed=0)


@pytest.fixture(scope="module")
def learner(folder):
    options = Options(liked=4.0, features=("genres",), size=8)
    return RecommendationsLearner.from_data(folder, RecommendationsLearner.default_settings, options, Fetcher(folder))


def served_of(learner, seed=0):
    torch.manual_seed(seed)
    network = learner.network().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return learner.to_inference_module(network)


def answers(served, task, tastes, length=None):
    arrays = [dict(task.preprocess(taste).arrays) for taste in tastes]
    for each in arrays if length else ():
        for name in ("history", "levels"):
            each[name] = np.pad(each[name], ((0, 0), (0, length - each[name].shape[1])))
    stacked = [torch.from_numpy(np.concatenate([each[spec.name] for each in arrays])) for spec in task.inputs]
    with torch.no_grad():
        return [output.numpy() for output in served(*stacked)]


def test_ratings_are_read_in_order_with_items_by_their_titles(ratings):
    assert (len(ratings.people), ratings.known, len(ratings.table)) == (40, 24, 25)
    assert ratings.table.titles[:2] == ("Even 0", "Odd 1")
    assert ratings.table.ids[-1] == "999"
    assert ratings.table.details["genres"][:2] == ("a|b", "c")
    assert (ratings.scale.low, ratings.scale.high, ratings.scale.levels, ratings.scale.liked_from) == (1, 5, 2, 2)
    assert ratings.ordered


def test_of_each_user_the_last_two_liked_items_are_held_out_and_nothing_after_them_is_trained_on(folder, ratings):
    frame = pl.read_csv(folder / "ratings.csv").sort("userId", "timestamp")
    for person in ratings.people:
        theirs = frame.filter(pl.col("userId") == int(person.name))
        liked = theirs.filter(pl.col("rating") >= 4)["movieId"].to_list()
        names = [int(ratings.table.ids[row]) for row in person.items]

        assert names == theirs["movieId"].to_list()
        assert (person.held_out is None) == (len(liked) < 3)
        if person.held_out:
            assert [names[place] for place in person.held_out] == liked[-2:]
            assert person.trained_until == person.held_out[0]


def test_samples_know_nothing_of_what_is_held_out_or_comes_later(ratings):
    samples = HistorySamples(ratings, window=64, ahead=2, unrated=0.0)
    likes = np.zeros(ratings.known, int)
    for person in ratings.people:
        trained = person.items[: person.trained_until][person.liked[: person.trained_until]]
        likes += np.bincount(trained, minlength=ratings.known)

    for epoch in range(3):
        for index in range(len(samples)):
            batch = samples.__getitems__([(epoch, index)])
            person = samples.people[samples.starts[index][0]]
            order = person.items.tolist()
            history = [row - 1 for row in batch["history"][0].tolist() if row]
            targets = [row for row in batch["target"][0].tolist() if row != NO_TARGET]
            assert history == order[: len(history)]
            assert all(len(history) <= order.index(row) < person.trained_until for row in targets)
            assert all(person.liked[order.index(row)] for row in targets)
            assert batch["candidates"][0].nonzero()[:, 0].tolist() == sorted(set(range(24)) - set(history))
    assert likes.tolist() == ratings.likes.tolist()


def test_without_times_the_order_follows_from_the_seed_and_a_history_is_all_else(tmp_path):
    found = read_ratings(shop(tmp_path / "a", times=False), ColumnNames(), liked=4.0, seed=0)
    again = read_ratings(shop(tmp_path / "b", times=False), ColumnNames(), liked=4.0, seed=0)
    other = read_ratings(shop(tmp_path / "c", times=False), ColumnNames(), liked=4.0, seed=1)
    orders = [[person.items.tolist() for person in each.people] for each in (found, again, other)]

    assert not found.ordered
    assert orders[0] == orders[1] != orders[2]
    samples = HistorySamples(found, window=64, ahead=1, unrated=0.0)
    batch = samples.__getitems__([(0, 0)])
    person = samples.people[0]
    trained = set(person.items[: person.trained_until].tolist())
    assert {row - 1 for row in batch["history"][0].tolist() if row} == trained - {int(batch["target"])}


def test_without_ratings_all_is_liked(tmp_path):
    found = read_ratings(shop(tmp_path, ratings=False), ColumnNames(), liked=0.0, seed=0)

    assert found.scale is None
    assert all(person.liked.all() and not person.levels.any() for person in found.people)


def test_of_more_levels_than_the_network_knows_those_are_liked_that_are_rated_so(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,rating,time\n" + "".join(f"{i % 2},{i},{i},{i}\n" for i in range(101)))

    found = read_ratings(path, ColumnNames(), liked=80.0, seed=0)

    liked = [int(found.table.ids[row]) for person in found.people for row in person.items[person.liked]]
    assert found.scale.levels == 20
    assert sorted(liked) == list(range(80, 101))
    for person in found.people:
        asked = [found.scale.level(float(found.table.ids[row])) for row in person.items]
        assert asked == person.levels.tolist()
        assert (person.levels >= found.scale.liked_from).tolist() == person.liked.tolist()


def test_dates_are_times_and_of_two_ratings_of_an_item_the_later_counts(tmp_path):
    path = tmp_path / "events.csv"
    rows = ["ann,tea,2024-01-03,1", "ann,tea,2024-01-09,5", "ann,jam,2024-01-05,5", "ann,oil,2024-01-04,5"]
    rows += ["bob,tea,2024-01-01,5", "bob,jam,2024-01-02,5", "bob,oil,2024-01-03,5"]
    path.write_text("who,Product ID,date,stars\n" + "\n".join(rows) + "\n")

    found = read_ratings(path, ColumnNames(user="who"), liked=0.0, seed=0)

    assert [[found.table.ids[row] for row in person.items] for person in found.people] == [
        ["oil", "jam", "tea"],
        ["tea", "jam", "oil"],
    ]
    assert found.notices == ("1 ratings are left out: the same user rated the item later.",)


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("a,b\n1,2\n", {}, "no column that looks like the user's: name it with --user-column; its columns are a, b"),
        ("user,b\n1,2\n", {}, "no column that looks like the item's"),
        ("user,item\n1,2\n", {"user": "who"}, "no column 'who'"),
        ("user,item\n1,a\n1,b\n1,c\n", {}, "holds one user"),
        ("user,item\n1,a\n2,a\n3,a\n", {}, "holds one item"),
        ("user,item\n1,a\n1,b\n2,a\n2,b\n", {}, "No user of .* likes 3 items or more"),
        ("user,item,rating\n1,a,good\n1,b,5\n2,a,4\n", {}, "a rating is to be a number, and one is 'good'"),
        ("user,item,rating\n1,a,1\n1,b,5\n2,a,4\n", {"liked": 6.0}, "the highest rating in .* is 5"),
        ("user,item,time\n1,a,yesterday\n1,b,2\n2,a,2\n", {}, "'yesterday' cannot be read as a time"),
        ("user,item,time\n1,a,1\n1,b,\n2,a,2\n", {}, "1 rows have no time"),
        ("user,item\n,a\n1,\n", {}, "holds no row with a user and an item"),
        ("", {}, "is empty"),
    ],
)
def test_wrong_data_gets_one_clear_sentence(tmp_path, text, options, sentence):
    path = tmp_path / "ratings.csv"
    path.write_text(text)
    liked = options.pop("liked", 0.0)

    with pytest.raises(CannotTrain, match=sentence) as caught:
        read_ratings(path, ColumnNames(**options), liked=liked, seed=0)

    assert "\n" not in str(caught.value)


def test_a_folder_without_ratings_and_features_that_are_not_there_are_named(tmp_path, folder):
    settings = RecommendationsLearner.default_settings
    with pytest.raises(CannotTrain, match=r"name it ratings\.csv"):
        read_ratings(tmp_path, ColumnNames(), liked=0.0, seed=0)
    with pytest.raises(CannotTrain, match=r"--features colour: .* its columns are: genres"):
        RecommendationsLearner(folder, settings, Options(features=("colour",)))
    with pytest.raises(CannotTrain, match="--window is to be 512 at most"):
        RecommendationsLearner.from_data(folder, settings, Options(window=513), Fetcher(folder))


def test_kinds_share_an_item():
    names, shares = kinds_of(["b|a", "", "a"])

    assert names == ("a", "b")
    assert shares.tolist() == [[0.5, 0.5], [0, 0], [1, 0]]


def test_ndcg_is_that_of_the_book():
    lists = np.array([[7, 3, 9], [1, 2, 3], [4, -1, -1]])
    wanted = [[3], [1, 3, 8, 9], [5]]

    gains = metrics.discounted_gain(lists, wanted)

    most = 1 + 1 / math.log2(3) + 1 / 2
    assert gains.tolist() == pytest.approx([1 / math.log2(3), (1 + 1 / 2) / most, 0])
    assert metrics.recall(lists, wanted).tolist() == [1, 0.5, 0]
    assert metrics.hit_rate(lists, wanted) == pytest.approx(2 / 3)


def test_exposure_coverage_and_gini_by_hand():
    shown = metrics.exposure(np.array([[0, 1], [0, 2], [0, -1]]), 4)

    assert shown.tolist() == [3, 1, 1, 0]
    assert metrics.coverage(shown) == 0.75
    # Of sorted 0, 1, 1, 3: (-3·0 - 1·1 + 1·1 + 3·3) / (4·5).
    assert metrics.gini(shown) == pytest.approx(9 / 20)
    assert metrics.gini(np.full(9, 4)) == pytest.approx(0)
    assert metrics.share_of_most_popular(shown, np.array([1, 9, 2, 3]), 0.25) == pytest.approx(1 / 5)
    assert metrics.mean_popularity(np.array([[0, 1], [2, -1]]), np.array([3, 6, 9])) == 6


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_gini_lies_between_nothing_and_one(counts):
    assert -1e-9 <= metrics.gini(np.array(counts)) < 1


def test_the_best_items_are_those_that_are_not_hidden_and_of_equal_ones_the_first():
    scores = np.array([[5.0, 1, 5, 9, 1], [0, 0, 0, 0, 0]])

    assert metrics.best_items(scores, [[3], [1, 2, 3]], 3).tolist() == [[0, 2, 1], [0, 4, -1]]


def test_what_was_liked_together_is_similar_by_hand():
    trained = [np.array([0, 1]), np.array([0, 1, 2]), np.array([0])]

    together = sar.similarities(trained, 4, "count").todense()
    jaccard = sar.similarities(trained, 4, "jaccard").todense()
    affinity = sar.affinities([np.array([2, 0, 1])], 4, 2.0).todense()

    assert together[0].tolist() == [[3, 2, 1, 0]]
    assert jaccard[0].tolist() == [pytest.approx([1, 2 / 3, 1 / 3, 0])]
    assert affinity.tolist() == [pytest.approx([0.5**0.5, 1, 0.5, 0])]
    assert Sar("jaccard", 2.0).words == "jaccard, an item counts half after 2 more"


def test_the_bands_of_ranks_widen():
    assert rank_bands(10).tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6]


@given(st.integers(0, 3), st.sampled_from(LENGTH_BUCKETS[1:]))
def test_neither_the_bucket_nor_the_company_changes_an_answer(learner_once, seed, length):
    learner, served = learner_once
    random = np.random.default_rng(seed)
    tastes = []
    for count in (0, 1, 3, 8):
        numbers = random.permutation(24)[:count] + 1
        tastes.append(UserHistory(tuple(numbers.tolist()), tuple(random.integers(0, 3, count).tolist())))

    together = answers(served, learner.task, tastes)
    longer = answers(served, learner.task, tastes, length)
    alone = [answers(served, learner.task, [taste]) for taste in tastes]

    for place, output in enumerate(together):
        np.testing.assert_allclose(output, longer[place], atol=1e-5)
        np.testing.assert_allclose(output, np.concatenate([each[place] for each in alone]), atol=1e-5)


@pytest.fixture(scope="module")
def learner_once(learner):
    return learner, served_of(learner)


def test_the_reason_is_the_liked_item_without_which_the_score_would_fall_most(learner_once):
    learner, served = learner_once
    assert isinstance(served, ServedTaste)
    numbers, levels = (3, 8, 20, 11), (2, 1, 2, NO_RATING)

    rows, _, because, contributions = answers(served, learner.task, [UserHistory(numbers, levels)])

    places = torch.from_numpy(rows[0]) + 1
    with torch.no_grad():
        parts = served.taste(torch.tensor([numbers]), torch.tensor([levels]))[1][0] @ served.wanted[rows[0]].T
    parts = parts.masked_fill(torch.tensor(numbers).unsqueeze(1) == places, -torch.inf)
    liked = parts[[0, 2, 3]]
    assert because[0].tolist() == np.array([0, 2, 3])[liked.argmax(dim=0).numpy()].tolist()
    np.testing.assert_allclose(contributions[0], liked.max(dim=0).values.numpy(), atol=1e-6)
    assert not (because == 1).any()


def test_probabilities_sum_to_one_over_what_may_be_recommended(learner_once):
    learner, served = learner_once

    _, scores, _, _ = answers(served, learner.task, [UserHistory((1, 2), (2, 2), frozenset({1, 2, 5}))])

    assert sorted(scores[0])[:3] == [-2, -2, -2]
    assert scores[0][scores[0] > -1].sum() == pytest.approx(1, abs=1e-5)


def test_who_is_known_by_nothing_gets_what_most_like(learner_once):
    learner, served = learner_once

    rows, scores, _, contributions = answers(served, learner.task, [UserHistory((), ())])

    likes = learner.ratings.likes[rows[0]]
    assert likes.tolist() == sorted(likes.tolist(), reverse=True)
    np.testing.assert_allclose(scores[0], likes / likes.sum(), atol=1e-3)
    assert not contributions.any()


def test_similar_is_the_cosine_of_what_items_ask_for(learner_once):
    learner, served = learner_once

    rows, scores, _, _ = answers(served, learner.task, [UserHistory((5,), (0,), frozenset({5}), similar=True)])

    unit = served.wanted / served.wanted.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(scores[0][:-1], (unit @ unit[4])[rows[0][:-1]].numpy(), atol=2e-3)
    assert 4 not in rows[0][:-1]
    assert scores[0][-1] < -1


def test_the_order_counts_only_where_there_are_times(tmp_path, learner):
    unordered = RecommendationsLearner(shop(tmp_path, times=False), learner.trained_with, Options(liked=4.0, size=8))
    first, second = UserHistory((1, 2, 3), (2, 1, 2)), UserHistory((3, 2, 1), (2, 1, 2))

    for each, same in ((learner, False), (unordered, True)):
        served = served_of(each)
        rows = [answers(served, each.task, [taste])[1] for taste in (first, second)]
        assert np.allclose(*rows, atol=1e-6) == same


def test_scores_of_the_learner_are_those_of_the_metrics(learner):
    torch.manual_seed(3)
    network = learner.network().eval()
    assert isinstance(network, TasteNetwork)
    scores = learner.scores(network, Runtime(torch.device("cpu")))

    questions = EvalQueries(learner.ratings, test=False)
    batch = questions.__getitems__([(0, i) for i in range(len(questions))])
    with torch.no_grad():
        logits = network(*(batch[spec.name] for spec in learner.task.inputs))[0].numpy()
    lists = metrics.best_items(logits, [each.history.tolist() for each in questions.asked], 10)
    wanted = [[each.wanted] for each in questions.asked]
    assert scores["ndcg_at_10"] == pytest.approx(float(metrics.discounted_gain(lists, wanted).mean()), abs=1e-5)
    assert scores["hit_rate_at_10"] == pytest.approx(metrics.hit_rate(lists, wanted))


def test_embeddings_are_of_items_and_of_users_as_their_histories_make_them(learner, tmp_path):
    torch.manual_seed(0)
    tables = learner.embeddings(learner.network())

    assert [(table.field, table.vectors.shape) for table in tables] == [("item", (24, 8)), ("user", (40, 8))]
    assert tables[0].names[0] == "Even 0"
    assert write_embeddings(tmp_path / "e.parquet", tables) == 64


def test_without_users_the_goldens_name_none(folder):
    options = Options(liked=4.0, size=8, keep_users=False)
    learner = RecommendationsLearner.from_data(
        folder, RecommendationsLearner.default_settings, options, Fetcher(folder)
    )
    served = served_of(learner)

    task, bodies = learner.golden_requests(served)

    def run(arrays):
        with torch.no_grad():
            outputs = served(*(torch.from_numpy(arrays[spec.name]) for spec in task.inputs))
        return {spec.name: output.numpy() for spec, output in zip(task.outputs, outputs, strict=True)}

    assert (task.users, task.example_user) == ({}, "")
    assert len(bodies) == 5
    assert not any("user" in body for body in [*bodies, *task.examples()])
    assert all(task.answer(run, body).plain()["items"] for body in [*bodies, *task.examples()])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A real training by the command line, of a minute at most."""
    root = tmp_path_factory.mktemp("published")
    folder = shop(root / "data-of-ones-own", users=160)
    words = ["--name", "shop", "--epochs", "12", "--batch-size", "16", "--rate", "0.02", "--ahead", "1", "--liked", "4"]
    places = [
        "--runs",
        root / "runs",
        "--models",
        root / "models",
        "--data-dir",
        root / "data",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    command = [sys.executable, "-m", "training", "recommendations", "--data", folder, *words, *places, "--publish"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return root / "models" / "shop"


@pytest.mark.slow
def test_what_is_trained_is_published_and_learnt_whose_kind_somebody_is(published):
    manifest = read_manifest(published / "1")
    task = manifest.load_task(published / "1")
    replay(published / "1")
    run = onnx_runner(published / "1" / "model.onnx", task)
    evens = [{"item": name, "rating": 5} for name in ("100", "102", "104")]
    answer = task.answer(run, {"ratings": evens, "k": 5}).plain()
    card = (published / "1" / "README.md").read_text()
    assert sum(item["title"].startswith("Even") for item in answer["items"]) >= 4
    assert answer["items"][0]["reason"].startswith("Because you liked Even")
    assert task.answer(run, {"user": "1"}) == task.answer(run, {"user": 1})
    for words in (
        "Popularity against exposure",
        "Gini of exposure",
        "co-occurrence (SAR)",
        "learns from",
        "users.json",
    ):
        assert words in card


@pytest.mark.slow
def test_another_table_of_items_makes_a_version_with_the_same_graph(published, tmp_path):
    last = max(int(path.name) for path in published.iterdir() if path.name.isdecimal())
    old = read_manifest(published / str(last))
    table = tmp_path / "items.csv"
    rows = [f"{100 + i},Film {i},{'false' if i == 0 else 'true'}" for i in range(23)]
    table.write_text("id,title,available\n" + "\n".join(rows) + "\n777,Brand new,true\n")

    folder, words = update_items(published, table)

    new = read_manifest(folder)
    task = new.load_task(folder)
    run = onnx_runner(folder / "model.onnx", task)
    everything = {item["id"] for item in task.answer(run, {"ratings": [], "k": 100}).plain()["items"]}
    assert new.files["model.onnx"] == old.files["model.onnx"]
    assert everything == {str(100 + i) for i in range(1, 23)}
    assert task.answer(run, {"ratings": [{"item": "100", "rating": 5}], "k": 1}).plain()["items"][0]["reason"] != ""
    assert task.items.titles[:2] == ("Film 0", "Film 1")
    assert "2 items withdrawn, 0 recommended again, 1 new ones named" in words
    replay(folder)
    assert not list(published.glob(".*"))


@pytest.mark.slow
def test_a_table_that_does_not_fit_publishes_nothing(published, tmp_path, capsys):
    before = sorted(path.name for path in published.iterdir())
    other, twice = tmp_path / "other.csv", tmp_path / "twice.csv"
    other.write_text("id,title\nx,y\n")
    twice.write_text("id,title\n100,a\n100,b\n")

    assert replace_items([str(published), str(other)]) == 2
    assert "None of the items in the table is one that the network knows" in capsys.readouterr().err
    assert replace_items([str(published), str(twice)]) == 2
    assert "holds the item '100' twice" in capsys.readouterr().err
    assert replace_items([str(tmp_path / "nowhere"), str(other)]) == 2
    assert "holds no versions of a model" in capsys.readouterr().err
    assert sorted(path.name for path in published.iterdir()) == before
