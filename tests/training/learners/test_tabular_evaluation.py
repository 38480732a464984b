"""The evaluation of table learners: measured on the exported file, compared with baselines, calibrated if possible."""

import re

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from training.core.errors import CannotTrain
from training.core.results import Trained
from training.data.download import Fetcher
from training.engine.runtime import Runtime
from training.learners.tabular.learner import Options, TabularLearner
from training.publishing.publish import refuse_worse_model

CPU = Runtime(torch.device("cpu"))


class Classifies(nn.Module):
    """Stands for an exported classifier that is `sure` of the second class where the first number is positive."""

    def __init__(self, sure):
        super().__init__()
        self.sure = sure

    def forward(self, categories, numbers):
        second = torch.where(numbers[:, 0] > 0, self.sure, 1 - self.sure)
        return (torch.stack([1 - second, second], dim=1),)


class Predicts(nn.Module):
    """Stands for an exported regression that predicts `slope` times the first number."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, categories, numbers):
        value = self.slope * numbers[:, 0]
        return value, torch.stack([value - 1, value + 1], dim=1)


def rows(count, *, classes=("no", "yes")):
    """Rows whose label is the second class where x is positive, and whose amount is 10 x plus noise."""
    random = np.random.default_rng(0)
    x = random.normal(size=count)
    return pl.DataFrame(
        {
            "x": x.round(4),
            "kind": random.choice(["a", "b", "c"], count),
            "day": pl.date_range(pl.date(2020, 1, 1), pl.date(2040, 1, 1), "1d", eager=True)[:count],
            "label": np.where(x > 0, classes[-1], classes[0]),
            "amount": (10 * x + random.normal(size=count)).round(4),
        }
    )


@pytest.fixture
def learner_of(tmp_path):
    def read(frame, target="label", epochs=2, **options):
        frame.write_csv(tmp_path / "rows.csv")
        ignore = ("amount",) if target == "label" else ("label",)
        settings = TabularLearner.default_settings.__class__(epochs=epochs, batch_size=16, precision="fp32")
        chosen = Options(target=target, ignore=ignore, layers=("8",), bins=4, **options)
        return TabularLearner.from_data(tmp_path / "rows.csv", settings, chosen, Fetcher(tmp_path))

    return read


def evaluate(learner, exported=None):
    torch.manual_seed(0)
    network = learner.network().eval()
    trained = Trained(0, network, learner.scores(network, CPU))
    served = learner.to_inference_module(network)
    return learner.evaluate([trained], served, exported or served)


def metrics_of(evaluation):
    return {metric.name: metric.value for metric in evaluation.metrics}


def test_metrics_of_a_classifier_are_those_of_the_exported_file(learner_of):
    learner = learner_of(rows(400))

    right, wrong = (evaluate(learner, Classifies(sure)) for sure in (0.9, 0.1))

    assert (metrics_of(right)["accuracy"], metrics_of(wrong)["accuracy"]) == (1, 0)
    assert metrics_of(right)["roc_auc"] == 1
    assert learner.sample_scores(Classifies(0.9)).values.all()
    assert right.failures == (), "Nothing was confused."
    assert any(re.fullmatch(r"All \d+ validation rows of no are predicted as yes\.", each) for each in wrong.failures)


def test_classifier_that_is_worse_than_one_answer_for_all_is_refused(learner_of):
    evaluation = evaluate(learner_of(rows(400)), Classifies(0.1))

    constant, boosting, roc_auc = evaluation.comparisons
    assert constant.other.startswith("always predicting '")
    assert [other.verdict for other in (constant, boosting, roc_auc)] == ["surely worse"] * 3
    assert any(note.startswith("Gradient boosting is surely better (accuracy, roc_auc)") for note in evaluation.notes)
    with pytest.raises(CannotTrain, match=r"surely worse than always predicting '.*--anyway"):
        refuse_worse_model(evaluation)


def test_equal_figures_are_called_neither_better_nor_worse(learner_of):
    evaluation = evaluate(learner_of(rows(1500)), Classifies(0.9))

    _, boosting, _ = evaluation.comparisons
    assert boosting.value == 1
    assert not boosting.is_surely_worse
    assert not any("beats" in note or "surely" in note for note in evaluation.notes)


def test_few_rows_leave_probabilities_uncalibrated_and_the_evaluation_says_so(learner_of):
    few, many = learner_of(rows(300)), learner_of(rows(1500).with_columns(label=pl.col("kind").replace("c", "a")))

    evaluations = [evaluate(learner) for learner in (few, many)]

    reason = f"The probabilities are not calibrated: {len(few.held_out)} validation rows; at least 200 are needed."
    assert float(few.to_inference_module(few.network()).temperature) == 1
    assert evaluations[0].caveats == (reason,)
    assert reason in evaluations[0].notes[0]
    assert "temperature" not in evaluations[0].notes[0]
    assert "calibration_error_before" not in metrics_of(evaluations[0])
    assert evaluations[1].caveats == ()
    assert "the temperature (" in evaluations[1].notes[0]
    assert "calibration_error_before" in metrics_of(evaluations[1])


def test_note_on_validation_counts_rows_and_speaks_of_a_best_epoch_only_if_there_were_several(learner_of):
    one, two = (evaluate(learner_of(rows(300), epochs=epochs)).notes[0] for epochs in (1, 2))

    assert "epoch" not in one
    assert "The best epoch was chosen on them." in two
    assert "of 300 rows, held out by a hash of the row" in two


def test_validation_rows_of_one_class_have_no_roc_auc(learner_of):
    is_valid = (pl.col("label") == "no") & (pl.int_range(300) >= 40)
    frame = rows(300).with_columns(part=pl.when(is_valid).then(pl.lit("valid")).otherwise(pl.lit("train")))
    learner = learner_of(frame, split_column="part")

    scores = learner.scores(learner.network(), CPU)

    assert list(scores) == ["accuracy", "loss"]
    assert np.isfinite(list(scores.values())).all()
    assert "roc_auc" not in metrics_of(evaluate(learner))


@pytest.mark.parametrize("held_out", [1, 2, 3])
@pytest.mark.parametrize("trained_on", [3, 6, 30])
def test_a_few_rows_are_evaluated_without_an_error(learner_of, held_out, trained_on):
    count = held_out + trained_on
    parts, labels = ["valid"] * held_out + ["train"] * trained_on, ["no", "yes"] * count
    mixed = rows(count).with_columns(part=pl.Series(parts), label=pl.Series(labels[:count]))
    learner = learner_of(mixed, split_column="part", audit=("kind",))

    evaluation = evaluate(learner)

    assert np.isfinite(list(metrics_of(evaluation).values())).all()
    assert len(learner.sample_scores(learner.to_inference_module(learner.network())).values) == held_out


def test_groups_that_are_served_equally_well_have_no_worst_one(learner_of):
    perfect = evaluate(learner_of(rows(3000), audit=("kind",)), Classifies(0.9))

    (by_kind,) = (table for table in perfect.tables if table.title == "By kind")
    assert perfect.failures == ()
    assert "*" not in by_kind.note, "No group is marked."


def test_metrics_of_a_regression_are_those_of_the_exported_file(learner_of):
    learner = learner_of(rows(600), target="amount", log_target="no")

    good, bad = (evaluate(learner, Predicts(slope)) for slope in (10.0, -10.0))

    assert metrics_of(good)["rmse"] == pytest.approx(1, abs=0.2)
    assert metrics_of(bad)["rmse"] == pytest.approx(20, abs=3)
    assert metrics_of(good)["rmse_to_boosting"] == pytest.approx(
        metrics_of(good)["rmse"] / metrics_of(good)["boosting_rmse"]
    )
    scores = learner.sample_scores(Predicts(10.0))
    assert np.sqrt(scores.values.mean()) == pytest.approx(metrics_of(good)["rmse"])
    assert good.comparisons[0].verdict == "surely better"
    with pytest.raises(CannotTrain, match=r"surely worse than always predicting .*: rmse is 19\."):
        refuse_worse_model(bad)


def test_rows_of_a_day_count_once_where_rows_are_split_by_time(learner_of):
    frame = rows(300).with_columns(day=pl.date(2020, 1, 1) + pl.duration(days=pl.int_range(300) // 5))
    learner = learner_of(frame, target="amount", log_target="no", split_time="day")

    comparison = evaluate(learner, Predicts(10.0)).comparisons[0]

    assert comparison.count == learner.valid_frame["day"].n_unique() < len(learner.held_out)
    assert comparison.samples == "days of the validation rows"


def test_interval_from_few_rows_says_how_far_its_coverage_may_be_off(learner_of):
    few, many = (learner_of(rows(count), target="amount", log_target="no") for count in (120, 4000))

    caveats, others = (evaluate(learner).caveats for learner in (few, many))

    calibrated = int(few.split.calibration.sum())
    assert any(f"calibrated on only {calibrated} rows" in caveat for caveat in caveats)
    assert not any("calibrated on only" in caveat for caveat in others)


def test_interval_is_calibrated_on_at_least_four_rows(learner_of):
    frame = rows(210).with_columns(part=pl.Series(["train"] * 200 + ["valid"] * 10))

    for shift in range(6):
        learner = learner_of(frame.with_columns(x=pl.col("x") + shift), target="amount", split_column="part")
        assert 4 <= learner.split.calibration.sum() <= 6


def test_bias_within_chance_and_intervals_without_misses_are_no_failures(learner_of):
    learner = learner_of(rows(600), target="amount", log_target="no")

    unbiased, biased = evaluate(learner, Predicts(10.0)), evaluate(learner, Predicts(30.0))

    assert not any("on average" in sentence for sentence in unbiased.failures)
    assert any("lie below their interval" in sentence for sentence in biased.failures)
    assert not any("0.0%" in sentence for sentence in (*unbiased.failures, *biased.failures))


def test_versions_with_other_columns_or_classes_are_not_compared(learner_of):
    learner = learner_of(rows(300))
    other = learner_of(rows(300).with_columns(kind=pl.col("kind").replace("a", "d")))
    renamed = learner_of(rows(300, classes=("0ff", "on")))

    assert learner.is_comparable(learner_of(rows(300)).task)
    assert not learner.is_comparable(other.task)
    assert not learner.is_comparable(renamed.task)
