import pytest
import torch
from torch import nn

from tasks.manifest import DataSource, Manifest, Metric
from training.core.results import EpochLog, Evaluation, RunResult, Table, Trained
from training.engine.runtime import Runtime
from training.publishing.export import Parity
from training.registry import recipe_for
from training.reporting.report import (
    ReportContext,
    format_count,
    format_duration,
    markdown_table,
    reproduction_command,
    text_columns,
)
from training.reporting.run_folder import Plan


@pytest.mark.parametrize(
    "cell", ["3", "-0.25", "95%", "0.881 to 0.940", "25.50 / 25.00", "0.9 ± 0.1", "12*", "–", "1.2e-05", "1.0 dB", ""]
)
def test_numbers_are_aligned_right(cell):
    assert text_columns(Table("", ("name", "value"), (("a", cell), ("b", "7")))) == [True, False]


def test_a_column_with_any_text_is_aligned_left():
    assert text_columns(Table("", ("name", "value"), (("a", "7"), ("b", "seven")))) == [True, True]


def test_a_table_without_rows_has_a_header():
    assert text_columns(Table("", ("name", "value"), ())) == [True, False]


def test_a_table_without_rows_is_its_note_and_no_header():
    assert markdown_table(Table("Most confused", ("true", "predicted"), (), "No mistakes.")) == "No mistakes.\n"
    assert (
        markdown_table(Table("Most confused", ("true", "predicted"), ())) == "This table has no rows for this data.\n"
    )


def test_a_label_cannot_break_a_table():
    table = Table("Per class", ("class", "n"), (("a|b", "1"), ("two\nlines", "2")), "A note.")

    assert markdown_table(table).splitlines() == [
        "| class | n |",
        "|---|---|",
        "| a\\|b | 1 |",
        "| two lines | 2 |",
        "",
        "A note.",
    ]


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (0, "less than a second"),
        (0.001, "less than a second"),
        (1 / 60, "1 second"),
        (0.2, "12 seconds"),
        (1, "1.0 minutes"),
        (33.04, "33.0 minutes"),
    ],
)
def test_a_short_training_did_not_take_0_minutes(minutes, text):
    assert format_duration(minutes) == text


def test_one_epoch_is_singular():
    assert (format_count(1, "epoch"), format_count(14, "epoch")) == ("1 epoch", "14 epochs")


def test_a_value_that_begins_with_a_dash_is_reproduced():
    command = reproduction_command(
        "pets", {"group_pattern": "-(\\d+)", "void": -1}, {"group_pattern": "", "void": 0}, None
    )

    assert command == "python -m training pets '--group-pattern=-(\\d+)' --void=-1 --publish"


@pytest.fixture
def perfect(tmp_path):
    """The context of a model without a mistake, after one epoch of a quarter of a second."""
    recipe = recipe_for("tabular", "churn", tmp_path)
    log = EpochLog(1, "all", 0.1, 0.01, 0.25, 100.0, {"accuracy": 1.0})
    result = RunResult((Trained(0, nn.Identity(), {"accuracy": 1.0}),), ((log,),), "CPU, 1 process, fp32")
    confused = Table("Most confused", ("true", "predicted"), (), "No row was given another class than its own.")
    evaluation = Evaluation((Metric(name="accuracy", value=1.0, protocol="on 3 rows"),), tables=(confused,))
    plan = Plan(recipe, recipe.settings, recipe.options, "python -m training tabular")
    return ReportContext(plan, result, evaluation, "9 rows.", "tabular", Runtime(torch.device("cpu")), "abc")


def test_the_report_of_a_perfect_model_says_so_where_lists_are_empty(perfect):
    page = perfect.report()

    assert "<p>The evaluation found none on the validation data; other data may show some.</p>" in page
    assert '<p class="note">No row was given another class than its own.</p>' in page
    assert "<th>predicted</th>" not in page
    assert "less than a second" in page


def test_the_card_of_a_perfect_model_says_so_where_lists_are_empty(perfect):
    manifest = Manifest(
        name="churn",
        version="1",
        task="tabular",
        title="churn",
        description="",
        parameters={},
        opset=20,
        parity=0.0,
        batch_invariance={},
        golden_tolerance=0.0,
        metrics=perfect.evaluation.metrics,
        data=DataSource(name="rows", licence="unknown", sha256=None, address=None, redistributable=False),
        licence="unknown",
        created="2026-01-01T00:00:00+00:00",
        code="abc",
        files={},
    )

    card = perfect.card(manifest, Parity(0.0, ("probabilities 0",), {}, ("0",), (), 1, (1, 2)))

    assert "## Known failures\n\nThe evaluation found none on the validation data" in card
    assert "### Most confused\n\nNo row was given another class than its own.\n" in card
    assert "Training: less than a second on CPU, 1 process, fp32; 1 epoch." in card
    assert "on 1 real validation sample\n" in card
