"""A number is learnt from a table of one's own, however it is split; what is exported helps other models too."""

import datetime

import numpy as np
import polars as pl
import pytest
import torch

from tasks.goldens import read_goldens
from tasks.manifest import read_manifest
from training.__main__ import main
from training.core.errors import CannotTrain
from training.data.download import Fetcher
from training.learners.tabular.learner import Options, TabularLearner
from training.learners.tabular.residuals import Predicted, by_group, by_time, worst, worst_group
from training.publishing import export
from training.publishing.publish import replay

FAST = ("--batch-size", "64", "--rate", "0.01", "--layers", "32", "--bins", "8", "--device", "cpu")


def sales(count=900, shops=40, seed=0):
    """What shops sell on days: each shop has a size of its own, and Saturdays are good ones."""
    random = np.random.default_rng(seed)
    size = np.exp(random.normal(0, 0.8, shops))
    shop = random.integers(0, shops, count)
    day = np.sort(random.integers(0, 500, count))
    saturday = (day + 5) % 7 == 5
    amount = np.round(100 * size[shop] * (1 + saturday) * np.exp(random.normal(0, 0.1, count)), 2)
    return pl.DataFrame(
        {
            "day": [datetime.date(2021, 1, 1) + datetime.timedelta(days=int(d)) for d in day],
            "shop": [f"shop {i}" for i in shop],
            "area": [None if i % 9 == 0 else round(float(size[s] * 50 + 5), 1) for i, s in enumerate(shop)],
            "part": ["valid" if i % 4 == 0 else "train" for i in range(count)],
            "amount": amount,
        }
    )


@pytest.fixture
def written(tmp_path):
    def write(frame, name="sales.csv"):
        frame.write_csv(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def train(tmp_path, capsys):
    def run(*arguments):
        places = ["--runs", tmp_path / "runs", "--models", tmp_path / "models", "--data-dir", tmp_path / "data"]
        status = main([str(word) for word in (*arguments, *places)])
        caught = capsys.readouterr()
        return status, caught.out, caught.err

    return run


def learner_of(path, **options):
    options = Options(**{"target": "amount", "layers": ("8",)} | options)
    return TabularLearner.from_data(path, TabularLearner.default_settings, options, Fetcher(path.parent))


@pytest.mark.slow
def test_a_table_with_a_number_becomes_a_report_a_model_and_embeddings(train, written, tmp_path):
    arguments = (
        *("tabular", "--data", written(sales()), "--target", "amount", "--name", "sales", "--split-time", "day"),
        *("--audit", "part", "--epochs", "12", "--seeds", "2", *FAST),
    )
    status, out, err = train(*arguments, "--publish")

    assert status == 0, err
    assert "a number" in out
    assert "by time, 'day' from 20" in out
    model = tmp_path / "models" / "sales" / "1"
    replay(model)
    manifest = read_manifest(model)
    figures = {metric.name: metric.value for metric in manifest.metrics}
    assert figures["rmsle"] < 0.4
    assert figures["r2"] > 0.6
    assert 0.5 < figures["coverage"] <= 1
    assert {"rmsle_mean", "rmsle_sd", "boosting_rmsle", "rmsle_to_boosting", "interval_width"} <= set(figures)
    task = manifest.load_task(model)
    row = {"day": "2030-01-01", "shop": "a new one", "area": None, "part": "train"}
    answer = task.answer(export.onnx_runner(model / "model.onnx", task), {"rows": [row, {**row, "day": None}]})
    assert all(0 <= each.low <= each.value <= each.high for each in answer.predictions)
    assert "after the last date" in answer.notices[0]
    assert "'a new one' was not seen" in answer.notices[1]
    assert read_goldens(model)[0].request == task.example(), "data that may not be given away is not in the goldens"
    card = (model / "README.md").read_text()
    for needed in ("Against gradient boosting", "By part", "Over time", "Worst rows", "principal axes", "80% interval"):
        assert needed in card
    page = next((tmp_path / "runs" / "sales").glob("*/index.html")).read_text()
    assert "Errors over time" in page

    status, out, err = train(*arguments, "--resume", "--export-embeddings", tmp_path / "e.parquet")

    assert status == 0, err
    frame = pl.read_parquet(tmp_path / "e.parquet")
    assert "Embeddings: " in out
    assert {"shop", "day.weekday", "part"} <= set(frame["field"])
    assert set(frame.filter(pl.col("field") == "shop")["value"].drop_nulls()) <= {f"shop {i}" for i in range(40)}


@pytest.mark.slow
def test_rows_that_may_be_passed_on_are_the_goldens(written, tmp_path):
    learner = learner_of(written(sales(300)))
    served = learner.to_inference_module(learner.network())

    task, requests = learner.golden_requests(served)

    known = set(sales(300)["shop"])
    assert all(row["shop"] in known for body in requests for row in body["rows"])
    assert task.example() == requests[0]
    assert any(None in row.values() for row in requests[1]["rows"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "by a hash of the row"),
        ({"split_column": "part"}, "by the column 'part'"),
        ({"split_time": "day", "split_from": "2022-02-01"}, "by time, 'day' from 2022-02-01 on"),
    ],
)
def test_each_kind_of_split_leaves_rows_to_train_validate_and_calibrate(written, options, words):
    learner = learner_of(written(sales(400)), **options)

    assert words in learner.data_summary()
    assert len(learner.samples) + len(learner.held_out) == 400
    assert 0 < learner.split.calibration.sum() < len(learner.held_out)
    assert "part" not in {column.name for column in learner.task.columns} or "split_column" not in options
    assert learner.scores(learner.network(), export_runtime())["rmsle"] > 0


def export_runtime():
    from training.engine.runtime import Runtime

    return Runtime(torch.device("cpu"))


def test_the_logarithm_is_learnt_where_that_is_less_skewed_or_where_it_is_asked_for(written):
    path = written(sales(400))

    assert learner_of(path).scale.log
    assert not learner_of(path, log_target="no").scale.log
    assert learner_of(path, bounds=("0", "1e5")).scale.high == 1e5
    assert learner_of(path, measure="mae").measures[0] == "mae"


def test_a_class_can_be_split_by_time_too(written):
    frame = sales(300).with_columns(good=(pl.col("amount") > 100).cast(pl.String))

    learner = learner_of(written(frame), target="good", ignore=("amount",), split_time="day")

    assert learner.task.labels == ("false", "true")
    assert learner.valid_frame["day"].min() > learner.train_frame["day"].max()


def test_what_is_unmeasured_is_left_out_and_told(written):
    frame = sales(300).with_columns(amount=pl.when(pl.int_range(300) % 50 == 0).then(None).otherwise(pl.col("amount")))

    learner = learner_of(written(frame))

    assert "6 rows without a value of 'amount' are left out." in learner.notices
    assert len(learner.samples) + len(learner.held_out) == 294


@pytest.mark.parametrize(
    ("frame", "options", "sentence"),
    [
        (sales(40), {}, "rows with a 'amount' to train on; at least 50 are needed"),
        (sales(300).with_columns(amount=pl.lit(7)), {"kind": "number"}, "is 7 in every row"),
        (
            sales(300).with_columns(amount=-pl.col("amount")),
            {"log_target": "yes"},
            "negative numbers have no logarithm",
        ),
        (sales(300), {"split_time": "gone"}, "--split-time gone"),
        (sales(300), {"split_time": "amount"}, "The target 'amount' cannot say how the table is split"),
        (sales(300), {"split_column": "shop"}, "its values must be train or valid"),
        (sales(300), {"split_time": "day", "split_from": "yesterday"}, "needs a date like 2012-09-01"),
        (sales(300), {"dates": ("shop",)}, "'shop' does not contain dates"),
        (sales(300), {"date_parts": ("era",)}, "the parts of a date are"),
        (sales(300), {"valid_fraction": 0.01, "split_time": "day"}, "rows to validate; a number needs 10"),
        (sales(300), {"measure": "rmspe", "bounds": ("5", "6")}, "leave out what 'amount' holds"),
        (sales(300), {"audit": ("gone",)}, "--audit gone"),
        (sales(300).with_columns(amount=pl.lit(None)), {"kind": "number"}, "'amount'"),
    ],
)
def test_what_cannot_be_learnt_gets_one_sentence(written, frame, options, sentence):
    with pytest.raises(CannotTrain, match=sentence) as caught:
        learner_of(written(frame), **options)

    assert "\n" not in str(caught.value)


def said(count=200):
    random = np.random.default_rng(0)
    truth = random.uniform(10, 20, count)
    value = truth + random.normal(0, 1, count)
    return Predicted(truth, value, value - 1.2816, value + 1.2816, np.arange(count) % 2 == 0)


def test_groups_say_how_far_off_they_are_and_how_often_the_interval_holds():
    found = said()
    names = ["small"] * 20 + ["large"] * 180

    table = by_group("By size", names, found, "rmse")

    large, small = table.rows
    assert (small[:2], large[:2]) == (("small", "20*"), ("large", "180"))
    assert float(large[4]) == pytest.approx(np.sqrt(((found.value - found.truth)[20:] ** 2).mean()), rel=1e-3)
    assert 0.7 < float(large[5]) < 0.9
    assert worst_group(table) is None, "there is one large group"


def test_coverage_is_told_by_the_rows_that_did_not_calibrate():
    found = Predicted(
        np.zeros(4), np.zeros(4), np.array([-1, 1, -1, 1.0]), np.full(4, 2.0), np.array([0, 0, 1, 1]) == 1
    )

    assert found.covered() == 0.5
    assert found.covered(np.array([True, False, False, False])) != found.covered()


@pytest.mark.parametrize(("days", "title"), [(60, "weeks"), (400, "months"), (3000, "years")])
def test_time_is_told_by_weeks_months_or_years(days, title):
    start = datetime.date(2001, 1, 1)
    times = pl.Series("day", [start + datetime.timedelta(days=i * days // 200) for i in range(200)])

    (table,) = by_time(times, said(), "mae")

    assert table.title == f"Over time, by {title}"
    assert sum(int(row[1].rstrip("*")) for row in table.rows) == 200


def test_hours_and_numbers_that_count_the_time_are_told_too():
    start = datetime.datetime(2001, 1, 1)
    hours = pl.Series("at", [start + datetime.timedelta(hours=i) for i in range(200)])

    assert [table.title for table in by_time(hours, said(), "mae")] == ["Over time, by weeks", "By the hour"]
    (tenths,) = by_time(pl.Series("week", list(range(200))), said(), "mae")
    assert [row[1] for row in tenths.rows] == ["20*"] * 10


def test_the_worst_rows_come_first():
    found = said()
    apart = np.abs(found.value - found.truth)

    table = worst([f"row {i}" for i in range(200)], found, apart, count=3)

    assert [row[0] for row in table.rows] == [f"row {i}" for i in np.argsort(-apart)[:3]]


def meetings(count=3000, each=100, seed=0):
    """What a shop sells of a product: each has a place of its own on a line, and what counts is how near they are."""
    random = np.random.default_rng(seed)
    shops, products = random.uniform(-1, 1, each), random.uniform(-1, 1, each)
    shop, product = random.integers(0, each, count), random.integers(0, each, count)
    apart = np.abs(shops[shop] - products[product])
    amount = np.round(np.exp(5 - 2 * apart + random.normal(0, 0.1, count)), 2)
    columns = {"shop": [f"s{i}" for i in shop], "product": [f"p{i}" for i in product]}
    return pl.DataFrame(
        {**columns, "part": ["valid" if i % 5 == 0 else "train" for i in range(count)], "amount": amount}
    )


@pytest.mark.slow
def test_another_model_gets_better_with_the_embeddings_than_with_a_column_for_each_category(train, written, tmp_path):
    """Two columns of a hundred categories each, and most pairs of them never seen together."""
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor

    frame = meetings()
    arguments = ("tabular", "--data", written(frame), "--target", "amount", "--split-column", "part", "--epochs", "25")
    status, _, err = train(*arguments, *FAST, "--layers", "64,32", "--export-embeddings", tmp_path / "e.parquet")
    assert status == 0, err
    learnt = pl.read_parquet(tmp_path / "e.parquet")
    one_hot = frame.select("shop", "product").to_dummies().to_numpy()
    embedded = np.hstack([vectors_of(learnt, frame, name) for name in ("shop", "product")])
    held = (frame["part"] == "valid").to_numpy()
    target = np.log1p(frame["amount"].to_numpy())
    errors = {}
    for name, inputs in (("one-hot", one_hot), ("embeddings", embedded)):
        for model in (Ridge(), KNeighborsRegressor(10)):
            guess = model.fit(inputs[~held], target[~held]).predict(inputs[held])
            errors[type(model).__name__, name] = float(np.sqrt(((guess - target[held]) ** 2).mean()))

    assert errors["KNeighborsRegressor", "embeddings"] < 0.8 * errors["KNeighborsRegressor", "one-hot"], errors
    assert errors["Ridge", "embeddings"] <= 1.05 * errors["Ridge", "one-hot"], errors


def vectors_of(learnt, frame, name):
    mine = learnt.filter(pl.col("field") == name)
    vectors = {row["value"]: np.array(row["vector"]) for row in mine.iter_rows(named=True)}
    return np.stack([vectors.get(value, vectors[None]) for value in frame[name]])
