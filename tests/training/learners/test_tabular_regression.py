"""Regression on tables: reading and splitting, and from the command line to a published model."""

import datetime
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from tasks.goldens import read_goldens
from tasks.manifest import read_manifest
from training.__main__ import main
from training.core.errors import CannotTrain
from training.data.download import Fetcher
from training.engine.runtime import Runtime
from training.learners.tabular.learner import Options, TabularLearner
from training.publishing import export
from training.publishing.publish import replay


def sales(count=900, shops=40, seed=0):
    """Sales by day and shop: each shop has its own size, and Saturdays sell twice as much."""
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


def learner_of(path, **options):
    options = Options(**{"target": "amount", "layers": ("8",)} | options)
    return TabularLearner.from_data(path, TabularLearner.default_settings, options, Fetcher(path.parent))


def test_only_columns_with_missing_values_in_training_may_be_omitted_in_requests(written):
    learner = learner_of(written(sales()))

    assert learner.task.optional == ("area",)


def test_a_column_that_is_left_out_is_not_said_to_be_read_as_categories(written):
    frame = sales().with_columns(
        pl.Series("customer", [f"{i:05}" for i in range(900)]),
        pl.Series("weight", [f"{i} kg" for i in range(900)]),
        pl.Series("price", [f"${i}.50" for i in range(900)]),
    )

    learner = learner_of(written(frame))

    reason = "is left out: its values are all distinct, as in an identifier. To use it, name it in"
    assert [sentence for sentence in learner.warnings if "'customer'" in sentence or "'weight'" in sentence] == [
        f"Column 'customer' {reason} --numbers or --categories.",
        f"Column 'weight' {reason} --categories, or remove the units ('0 kg').",
    ]
    assert "price" in [column.name for column in learner.task.columns]
    assert len(learner_of(written(frame), numbers=("customer",)).task.columns) == len(learner.task.columns) + 1


def test_columns_that_may_be_omitted_are_found_for_a_model_that_was_published_without_them(written):
    learner = learner_of(written(sales()))
    published = replace(learner.task, optional=())
    row = {"day": "2021-01-01", "shop": "shop 1", "area": None, "part": "train"}
    goldens = [{"rows": [row | {"area": 55.0}]}, {"rows": [row]}]

    measured = learner.remeasure(published, _no_run, goldens)

    (table,) = measured.tables
    assert measured.task == learner.task
    assert measured.requests == ({"rows": [{name: row[name] for name in ("day", "shop", "part")}]},)
    assert [cells[0] for cells in table.rows] == ["area"]


def _no_run(arrays):
    raise AssertionError("The graph is not needed to look for missing values.")


ARGUMENTS = (
    *("--target", "amount", "--name", "sales", "--split-time", "day", "--audit", "part", "--epochs", "8"),
    *("--seeds", "2", "--batch-size", "32", "--rate", "0.01", "--layers", "32", "--bins", "8", "--device", "cpu"),
)


def train(root, *arguments):
    paths = ["--runs", root / "runs", "--models", root / "models", "--data-dir", root / "data"]
    words = ["tabular", "--data", root / "sales.csv", *ARGUMENTS, *paths, *arguments]
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    sales(500, shops=15).write_csv(root / "sales.csv")
    train(root, "--publish", "--anyway")
    return root


@pytest.mark.slow
def test_published_model_reports_its_metrics_and_answers(published):
    model = published / "models" / "sales" / "1"
    replay(model)
    manifest = read_manifest(model)
    metrics = {metric.name: metric.value for metric in manifest.metrics}
    assert metrics["rmsle"] < 0.4
    assert metrics["r2"] > 0.6
    assert 0.5 < metrics["coverage"] <= 1
    assert {"rmsle_mean", "rmsle_sd", "boosting_rmsle", "rmsle_to_boosting", "interval_width"} <= set(metrics)
    task = manifest.load_task(model)
    row = {"day": "2030-01-01", "shop": "a new one", "area": None, "part": "train"}
    answer = task.answer(export.onnx_runner(model / "model.onnx", task), {"rows": [row, {**row, "day": None}]})
    assert all(0 <= row.low <= row.value <= row.high for row in answer.predictions)
    assert "after the last date" in answer.notices[0]
    assert "'a new one' was not seen" in answer.notices[1]
    assert read_goldens(model)[0].request == task.example(), "data that may not be given away is not in the goldens"


@pytest.mark.slow
def test_network_that_is_surely_worse_than_gradient_boosting_is_published_only_anyway(published, capsys):
    paths = ["--runs", published / "runs", "--models", published / "models", "--data-dir", published / "data"]
    words = ["tabular", "--data", published / "sales.csv", *ARGUMENTS, *paths, "--resume", "--publish"]

    assert main([str(word) for word in words]) == 2

    captured = capsys.readouterr()
    assert "surely worse than gradient boosting: rmsle is" in captured.err
    assert "version 1, which it replaces" in captured.out
    assert not (published / "models" / "sales" / "2").exists()


@pytest.mark.slow
def test_card_and_report_show_errors_over_time_and_by_group(published):
    card = (published / "models" / "sales" / "1" / "README.md").read_text()
    page = next((published / "runs" / "sales").glob("*/index.html")).read_text()

    for words in (
        "Comparison with gradient boosting",
        "By part",
        "Over time",
        "Worst rows",
        "principal axes",
        "80% interval",
    ):
        assert words in card
    assert "Errors over time" in page


@pytest.mark.slow
def test_finished_run_is_resumed_to_export_embeddings(published, tmp_path, capsys):
    train(published, "--resume", "--export-embeddings", tmp_path / "e.parquet")

    out = capsys.readouterr().out
    frame = pl.read_parquet(tmp_path / "e.parquet")
    assert "a number" in out
    assert "by time, 'day' from 20" in out
    assert "Embeddings: " in out
    assert {"shop", "day.weekday", "part"} <= set(frame["field"])
    assert set(frame.filter(pl.col("field") == "shop")["value"].drop_nulls()) <= {f"shop {i}" for i in range(15)}


@pytest.mark.slow
def test_golden_requests_are_validation_rows(written, tmp_path):
    learner = learner_of(written(sales(300)))
    served = learner.to_inference_module(learner.network())

    task, requests = learner.golden_requests(served)

    shops = set(sales(300)["shop"])
    assert all(row["shop"] in shops for body in requests for row in body["rows"])
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
def test_each_split_leaves_rows_to_train_validate_and_calibrate(written, options, words):
    learner = learner_of(written(sales(400)), **options)

    assert words in learner.data_summary()
    assert len(learner.samples) + len(learner.held_out) == 400
    assert 0 < learner.split.calibration.sum() < len(learner.held_out)
    assert "part" not in {column.name for column in learner.task.columns} or "split_column" not in options
    assert learner.scores(learner.network(), Runtime(torch.device("cpu")))["rmsle"] > 0


def test_logarithm_is_learnt_if_less_skewed_or_requested(written):
    path = written(sales(400))

    assert learner_of(path).scale.log
    assert not learner_of(path, log_target="no").scale.log
    assert learner_of(path, bounds=("0", "1e5")).scale.high == 1e5
    assert learner_of(path, metric="mae").metrics[0] == "mae"


def test_classes_can_be_split_by_time(written):
    frame = sales(300).with_columns(good=(pl.col("amount") > 100).cast(pl.String))

    learner = learner_of(written(frame), target="good", ignore=("amount",), split_time="day")

    assert learner.task.labels == ("false", "true")
    assert learner.valid_frame["day"].min() > learner.train_frame["day"].max()


def test_rows_without_a_target_are_left_out_with_a_notice(written):
    frame = sales(300).with_columns(amount=pl.when(pl.int_range(300) % 50 == 0).then(None).otherwise(pl.col("amount")))

    learner = learner_of(written(frame))

    assert "6 rows without a value of 'amount' were left out." in learner.warnings
    assert len(learner.samples) + len(learner.held_out) == 294


def test_single_row_or_column_is_described_in_the_singular(written):
    frame = sales(300).with_columns(amount=pl.when(pl.int_range(300) == 7).then(None).otherwise(pl.col("amount")))

    learner = learner_of(written(frame))

    assert "1 row without a value of 'amount' was left out." in learner.warnings
    assert "1 columns" not in learner.data_summary()


@pytest.mark.parametrize(
    ("frame", "options", "sentence"),
    [
        (sales(40), {}, "Only 30 training rows have a 'amount'; at least 50 are needed"),
        (sales(300).with_columns(amount=pl.lit(7)), {"kind": "number"}, "is 7 in every training row"),
        (
            sales(300).with_columns(amount=-pl.col("amount")),
            {"log_target": "yes"},
            "negative numbers have no logarithm",
        ),
        (sales(300), {"split_time": "gone"}, "--split-time gone"),
        (sales(300), {"split_time": "amount"}, "The table cannot be split by its target 'amount'"),
        (sales(300), {"split_column": "shop"}, "its values must be train or valid"),
        (sales(300), {"split_time": "day", "split_from": "yesterday"}, "needs a date like 2012-09-01"),
        (sales(300), {"dates": ("shop",)}, "'shop' does not contain dates"),
        (sales(300), {"date_parts": ("era",)}, "the parts of a date are"),
        (sales(300), {"valid_fraction": 0.01, "split_time": "day"}, "validation rows; regression needs 10"),
        (sales(300), {"metric": "rmspe", "bounds": ("5", "6")}, "--bounds 5,6 exclude values of 'amount'"),
        (sales(300), {"audit": ("gone",)}, "--audit gone"),
        (sales(300).with_columns(amount=pl.lit(None)), {"kind": "number"}, "'amount'"),
    ],
)
def test_unlearnable_data_gets_a_one_line_error(written, frame, options, sentence):
    with pytest.raises(CannotTrain, match=sentence) as caught:
        learner_of(written(frame), **options)

    assert "\n" not in str(caught.value)
