"""Tabular: rows become classes or numbers; unusual values get notices, invalid ones are rejected."""

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks._tables import CategoryColumn, NumberColumn
from tasks.contract import Arrays, InvalidOutput, Limits, Samples, build_task, parameters_of
from tasks.tabular import NumberAnswer, Tabular, TabularAnswer, TabularRequest, with_examples
from tests.hostile_texts import hostile_rows
from tests.model_folders import runner
from tests.tiny.tabular import CREDIT, HIRES, hires_graph

ROW = {"when": "2012-06-01T08:00", "temp": 20, "weather": "clear"}


def predict(*rows: dict[str, Any]) -> Any:
    return HIRES.answer(runner(hires_graph()), {"rows": list(rows)})


def constant_network(value: float, low: float, high: float) -> Callable[[Arrays], Arrays]:
    def run(arrays: Arrays) -> Arrays:
        count = len(arrays["numbers"])
        return {
            "value": np.full(count, value, np.float32),
            "interval": np.tile(np.array([[low, high]], np.float32), (count, 1)),
        }

    return run


def test_every_row_gets_a_number_with_an_interval() -> None:
    answer = predict(ROW, {**ROW, "temp": 30})

    assert answer.predictions[1].value == pytest.approx(answer.predictions[0].value + 10)
    assert all(p.low < p.value < p.high for p in answer.predictions)
    assert (answer.coverage, answer.notices) == (0.8, [])


def test_numbers_are_rounded_to_six_digits() -> None:
    answer = HIRES.answer(constant_network(1234.56789, 0.000123456789, -0.0), {"rows": [ROW]})

    assert answer.plain()["predictions"] == [{"value": 1234.57, "low": 0.000123457, "high": 0.0}]


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_rounding_changes_only_the_sixth_digit(value: float) -> None:
    rounded = HIRES.answer(constant_network(value, value, value), {"rows": [ROW]}).predictions[0].value

    assert math.isfinite(rounded)
    assert rounded == pytest.approx(value, rel=1e-5, abs=1e-29)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_raise_invalid_output(value: float) -> None:
    with pytest.raises(InvalidOutput, match=r"no finite number for rows \[0\]"):
        HIRES.answer(constant_network(1.0, value, 2.0), {"rows": [ROW]})


def test_model_predicts_either_classes_or_numbers() -> None:
    assert (CREDIT.answer_type, HIRES.answer_type) == (TabularAnswer, NumberAnswer)
    assert [spec.name for spec in HIRES.outputs] == ["value", "interval"]
    for labels, spread in (((), None), (("a", "b"), (0.0, 1.0))):
        with pytest.raises(ValueError, match="either labels or the spread"):
            Tabular("y", labels, (NumberColumn("x", 0, 1),), spread=spread)


def test_parameters_without_regression_fields_are_valid() -> None:
    old = {
        name: value for name, value in parameters_of(CREDIT).items() if name not in ("spread", "coverage", "optional")
    }

    assert build_task(Tabular, old) == CREDIT


def test_date_outside_training_is_answered_with_a_notice() -> None:
    answer = predict(ROW, {**ROW, "when": "2010-12-31T23:00"}, {**ROW, "when": "2012-09-01 00:00"})

    assert answer.notices == [
        "rows.1.when: 2010-12-31T23:00 is before the first date that training saw (2011-01-01T00:00).",
        "rows.2.when: 2012-09-01 00:00 is after the last date that training saw (2012-08-31T23:00).",
    ]


def read(task: Tabular, *rows: Any) -> Samples:
    return task.preprocess(task.decode(task.parse({"rows": list(rows)}, Limits()), Limits()))


@pytest.mark.parametrize("text", ["", "?", " NA ", "n/a", "null", "NaN", "None"])
def test_texts_for_missing_values_count_as_missing(text: str) -> None:
    read_from_text, read_from_null = read(HIRES, dict.fromkeys(ROW, text)), read(HIRES, dict.fromkeys(ROW))

    for name, array in read_from_text.arrays.items():
        np.testing.assert_array_equal(array, read_from_null.arrays[name])
    assert all("counts as missing" in notice for notice in read_from_text.context)


def test_category_that_reads_like_a_missing_value_remains_a_category() -> None:
    task = Tabular("y", ("a", "b"), (CategoryColumn("country", ("NA", "DE")),))

    samples = read(task, {"country": "NA"}, {"country": "null"}, {"country": None})

    assert samples.arrays["categories"].ravel().tolist() == [2, 0, 0]
    assert samples.context == ["rows.1.country: 'null' counts as missing."]


@pytest.mark.parametrize(("text", "number"), [("20", 20), (" 3.5 ", 3.5), ("-1e2", -100), ("+.5", 0.5), ("7.", 7)])
def test_number_as_text_is_read_with_a_notice(text: str, number: float) -> None:
    samples = read(HIRES, {**ROW, "temp": text}, {**ROW, "temp": text})

    assert samples.arrays["numbers"][:, 1].tolist() == [number, number]
    assert samples.context[0] == (
        f"rows.0.temp: the text '{text.strip()}' was read as the number {number:g}, and likewise in 1 more row."
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("12,5", "'12,5' is not a number; write 12.5"),
        ("1,000", "'1,000' is not a number; write 1000 or 1.000"),
        ("-1,234,567.5", "'-1,234,567.5' is not a number; write -1234567.5"),
        ("abc", "'abc' is not a number"),
        ("1_000", "'1_000' is not a number"),
        ("inf", "'inf' is not a number"),
        ("0x10", "'0x10' is not a number"),
        ("٣", "'٣' is not a number"),
        ("9" * 1_000_000, "is not a number"),
        ("1e999", "finite number"),
        (True, "valid number"),
        ([20], "valid number"),
    ],
)
def test_value_that_is_no_number_is_rejected(value: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HIRES.parse({"rows": [ROW, {**ROW, "temp": value}]}, Limits())

    (problem,) = caught.value.errors()
    assert problem["loc"] == ("rows", 1, "temp")
    assert message in problem["msg"]
    assert len(problem["msg"]) < 200


@pytest.mark.parametrize(
    ("value", "index"),
    [(12, 2), ("12", 2), (" 12 ", 2), (12.0, 2), ("12.0", 2), ("12.", 2), ("7", 1), (None, 0), ("", 0)],
)
def test_whole_numbers_are_read_from_texts_and_floats(value: Any, index: int) -> None:
    task = Tabular("y", ("a", "b"), (CategoryColumn("store", ("12",), integer=True),))

    assert read(task, {"store": value}).arrays["categories"].tolist() == [[index]]


@pytest.mark.parametrize("value", ["x", "1.5", 1.5, True])
def test_value_that_is_no_whole_number_is_rejected(value: Any) -> None:
    task = Tabular("y", ("a", "b"), (CategoryColumn("store", ("12",), integer=True),))

    with pytest.raises(ValidationError, match=r"number|integer"):
        task.parse({"rows": [{"store": value}]}, Limits())


def test_optional_column_that_is_omitted_counts_as_missing_with_a_notice() -> None:
    task = replace(HIRES, optional=("weather",))
    without = {name: value for name, value in ROW.items() if name != "weather"}

    samples = read(task, ROW, without, without)

    assert samples.arrays["categories"][:, 2].tolist() == [2, 0, 0]
    assert samples.context == [
        "rows.1.weather: the column was not sent and counts as missing, and likewise in 1 more row."
    ]


def test_other_column_that_is_omitted_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ValidationError, match="send null if its value is not known"):
        HIRES.parse({"rows": [{"when": ROW["when"], "temp": 20}]}, Limits())

    with pytest.raises(ValueError, match="'wind' is not a column"):
        replace(HIRES, optional=("wind",))


def test_unknown_column_gets_a_suggestion_only_if_a_name_is_near() -> None:
    for name, expected in (("Temp", "Did you mean 'temp'?"), ("wether", "Did you mean 'weather'?"), ("humidity", "")):
        with pytest.raises(ValidationError) as caught:
            HIRES.parse({"rows": [{**ROW, name: 1}]}, Limits())

        assert caught.value.errors()[0]["msg"] == f"there is no such column. {expected}".strip()


def test_row_with_the_target_is_told_that_the_model_predicts_it() -> None:
    with pytest.raises(ValidationError, match="the column is what the model predicts; remove it"):
        HIRES.parse({"rows": [{**ROW, HIRES.target: 1}]}, Limits())


def test_problems_of_several_rows_are_listed_but_not_of_all() -> None:
    rows = [ROW if i % 2 else {**ROW, "temp": "warm"} for i in range(1000)]

    with pytest.raises(ValidationError) as caught:
        HIRES.parse({"rows": rows}, Limits())

    assert [problem["loc"][1] for problem in caught.value.errors()] == list(range(0, 40, 2))


@pytest.mark.parametrize("name", hostile_rows(ROW))
def test_hostile_rows_are_answered_or_rejected_with_few_problems(name: str) -> None:
    try:
        read(HIRES, *hostile_rows(ROW)[name]["rows"])
        problems = 0
    except ValidationError as error:
        problems = error.error_count()

    assert problems <= 20 + len(ROW) + 20


def test_json_of_the_largest_request_is_within_its_limit_of_values() -> None:
    rows = [{**ROW, "weather": "clear, mostly"}] * 1000

    assert sum(map(json.dumps({"rows": rows}).count, ",[{")) <= HIRES.max_json_values(Limits())


def test_request_can_be_sent_to_another_process() -> None:
    request = HIRES.parse({"rows": [ROW]}, Limits()).model_copy(update={"rows": None})

    assert isinstance(pickle.loads(pickle.dumps(request)), TabularRequest)  # noqa: S301 -- pickled here


def test_missing_date_is_encoded_as_missing() -> None:
    samples = read(HIRES, {**ROW, "when": None})

    assert samples.arrays["categories"].tolist() == [[0, 0, 2]]
    assert np.isnan(samples.arrays["numbers"][0, 0])


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("2012-02-30T08:00", "there is no such day"),
        ("2012-06-01T25:00", "there is no such day or time"),
        ("2012-06-01", "has no time of day: write 2012-09-01T08:00"),
        ("01.06.2012 08:00", "is not a date in the expected format"),
        ("2012-06-01T08:00Z", "without a time zone"),
        ("2012-W10-1", "is not a date"),
        ("now", "is not a date"),
        ("٢٠١٢-06-01T08:00", "is not a date"),
        ("1776-07-04T12:00", "over a hundred years away"),
        ("9999-12-31T23:59", "over a hundred years away"),
        ("0000-01-01T00:00", "there is no such day"),
        ("2012-06-01T08:00" + "0" * 5000, "is not a date"),
        (20120601, "string"),
        (True, "string"),
    ],
)
def test_invalid_date_is_rejected_with_a_message(when: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HIRES.parse({"rows": [{**ROW, "when": when}]}, Limits())

    (problem,) = caught.value.errors()
    assert problem["loc"] == ("rows", 0, "when")
    assert message in problem["msg"]
    assert len(problem["msg"]) < 200


def test_with_examples_uses_the_values_of_the_row() -> None:
    row = {"when": "2011-05-05T05:00", "temp": 1.5, "weather": "rain"}

    assert with_examples(HIRES, row).example() == {"rows": [row]}


def test_column_without_values_has_an_example() -> None:
    task = Tabular("y", ("a", "b"), (CategoryColumn("c", ()), NumberColumn("n", 0.0, 4.0)))

    assert task.example() == {"rows": [{"c": None, "n": 2.0}]}
