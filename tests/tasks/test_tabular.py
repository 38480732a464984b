"""Tabular: rows become classes or numbers; unusual values get notices, invalid ones are rejected."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks._tables import CategoryColumn, NumberColumn
from tasks.contract import Arrays, InvalidOutput, Limits, build_task, parameters_of
from tasks.tabular import NumberAnswer, Tabular, TabularAnswer, with_examples
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
    old = {name: value for name, value in parameters_of(CREDIT).items() if name not in ("spread", "coverage")}

    assert build_task(Tabular, old) == CREDIT


def test_date_outside_training_is_answered_with_a_notice() -> None:
    answer = predict(ROW, {**ROW, "when": "2010-12-31T23:00"}, {**ROW, "when": "2012-09-01 00:00"})

    assert answer.notices == [
        "rows.1.when: 2010-12-31T23:00 is before the first date that training saw (2011-01-01T00:00).",
        "rows.2.when: 2012-09-01 00:00 is after the last date that training saw (2012-08-31T23:00).",
    ]


def test_missing_date_is_encoded_as_missing() -> None:
    samples = HIRES.preprocess(HIRES.decode(HIRES.parse({"rows": [{**ROW, "when": None}]}, Limits()), Limits()))

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
        ("", "is not a date"),
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
