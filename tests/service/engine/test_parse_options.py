"""Request options: how they are parsed from fields, rejected and merged."""

import math
from collections.abc import Mapping
from typing import Any

import pytest

from service.engine.admission import RequestOptions, parse_options
from service.errors import InvalidRequest


@pytest.mark.parametrize(
    ("fields", "rest", "options"),
    [
        ({}, {}, RequestOptions()),
        ({"a": 1}, {"a": 1}, RequestOptions()),
        ({"a": 1, "timeout_ms": 250}, {"a": 1}, RequestOptions(0.25)),
        ({"timeout_ms": "250.5"}, {}, RequestOptions(0.2505)),
        ({"priority": "low"}, {}, RequestOptions(None, "low")),
        ({"timeout_ms": None, "priority": None, "b": None}, {"b": None}, RequestOptions()),
        ({"priority": "high", "timeout_ms": 1e9}, {}, RequestOptions(1e6, "high")),
    ],
)
def test_fields_are_split_into_input_and_options(
    fields: Mapping[str, Any], rest: Mapping[str, Any], options: RequestOptions
) -> None:
    assert parse_options(fields) == (rest, options)


@pytest.mark.parametrize(
    ("name", "value"),
    [("timeout_ms", value) for value in (0, -1, "soon", "", "nan", "inf", math.nan, math.inf, True, [], {}, "1" * 999)]
    + [("timeout_ms", 10**400)]
    + [("priority", value) for value in ("urgent", "HIGH", "", 1, [], {}, True, "x" * 9999)],
)
def test_invalid_option_is_rejected_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name) as rejected:
        parse_options({name: value})

    assert [problem.where for problem in rejected.value.details] == [name]
    assert len(str(rejected.value)) < 200


def test_field_of_the_task_is_not_an_option() -> None:
    assert parse_options({"priority": "whatever"}, names=("timeout_ms",)) == (
        {"priority": "whatever"},
        RequestOptions(),
    )


def test_merge_keeps_the_shorter_timeout_and_the_later_priority() -> None:
    assert RequestOptions(2.0, "low").merge(RequestOptions(1.0, "high")) == RequestOptions(1.0, "high")
    assert RequestOptions(1.0, "low").merge(RequestOptions(2.0)) == RequestOptions(1.0, "low")
    assert RequestOptions().merge(RequestOptions()) == RequestOptions()
    assert not RequestOptions()
