"""Requests with several inputs share the limits of one."""

from typing import Any

import pytest

from service.engine.preparation import Preparation, PreparationRules, SeveralPreparations, prepare
from service.errors import TooLarge
from tasks.contract import Limits
from tests.tiny.models import tiny

RULES = PreparationRules(Limits(characters=100), ())


def prepare_texts(texts: Any) -> Preparation | SeveralPreparations:
    task, _ = tiny("sentiment")
    return prepare(task, RULES, b"", lambda body: {"text": texts})


@pytest.mark.parametrize(("count", "length"), [(1, 100), (2, 50), (10, 10)])
def test_inputs_that_are_together_as_long_as_one_may_be_are_accepted(count: int, length: int) -> None:
    several = prepare_texts(["a" * length] * count)

    assert isinstance(several, SeveralPreparations)
    assert all(isinstance(item, Preparation) for item in several.items)


def test_longer_ones_are_refused_with_the_reason() -> None:
    several = prepare_texts(["a" * 60, "a"])

    assert isinstance(several, SeveralPreparations)
    too_long, short = several.items
    assert isinstance(too_long, TooLarge)
    assert "share such limits" in too_long.message
    assert isinstance(short, Preparation)
