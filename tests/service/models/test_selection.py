"""Selection: which versions are to be served, by the settings and by what an operator has chosen."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from service.models import selection
from service.models.model import Choice, Entry, LoadState, Model
from service.models.selection import Rule

SERVED, FAILED, PENDING = LoadState.SERVED, LoadState.FAILED, LoadState.PENDING
AUTOMATIC, PROMOTED, UNLOADED = Choice.AUTOMATIC, Choice.PROMOTED, Choice.UNLOADED
LOADED, BESIDE = Choice.LOADED, Choice.LOADED_BESIDE


def versions(choices: Mapping[int, Choice], states: Mapping[int, LoadState] | None = None) -> list[Entry]:
    """Return entries, newest first; served unless `states` says otherwise. Each model stands for itself."""
    entries = []
    for number, choice in sorted(choices.items(), reverse=True):
        state = (states or {}).get(number, SERVED)
        model = cast("Model", f"model {number}") if state in (SERVED, LoadState.SHADOW) else None
        entries.append(Entry("credit", str(number), state, loaded=model, choice=choice))
    return entries


def default(entries: list[Entry], rule: Rule = Rule()) -> Any:  # noqa: B008 -- frozen
    return selection.default_model(entries, rule)


def kept(entries: list[Entry], rule: Rule) -> list[int]:
    return [entry.number for entry in selection.replace_unneeded(entries, rule) if entry.state is SERVED]


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({1: AUTOMATIC, 2: AUTOMATIC}, 2),
        ({1: PROMOTED, 2: AUTOMATIC}, 1),
        ({1: AUTOMATIC, 2: UNLOADED}, 1),
        ({1: AUTOMATIC, 2: BESIDE}, 1),
        ({1: LOADED, 2: AUTOMATIC}, 2),
        ({1: AUTOMATIC, 2: LOADED}, 2),
        ({2: BESIDE}, 2),
        ({2: UNLOADED}, None),
    ],
)
def test_the_default_is_the_newest_version_unless_an_operator_chose_otherwise(
    choices: Mapping[int, Choice], expected: int | None
) -> None:
    assert default(versions(choices)) == (None if expected is None else f"model {expected}")


def test_a_pinned_model_has_no_other_default() -> None:
    entries = versions({1: AUTOMATIC, 2: AUTOMATIC, 3: PROMOTED}, {1: FAILED})

    assert default(entries, Rule(pinned="2")) == "model 2"
    assert default(entries, Rule(pinned="1")) is None
    assert default(entries, Rule(pinned="9")) is None


@pytest.mark.parametrize(
    ("choices", "max_versions", "expected"),
    [
        ({1: AUTOMATIC, 2: AUTOMATIC, 3: AUTOMATIC}, 1, [3]),
        ({1: AUTOMATIC, 2: AUTOMATIC, 3: AUTOMATIC}, 2, [3, 2]),
        ({1: AUTOMATIC, 2: AUTOMATIC, 3: AUTOMATIC}, 0, [3, 2, 1]),
        ({1: PROMOTED, 2: AUTOMATIC, 3: AUTOMATIC}, 1, [1]),
        ({1: PROMOTED, 2: AUTOMATIC, 3: AUTOMATIC}, 2, [3, 1]),
        ({1: LOADED, 2: AUTOMATIC, 3: AUTOMATIC}, 1, [3, 1]),
        ({1: AUTOMATIC, 2: AUTOMATIC, 3: BESIDE}, 1, [3, 2]),
        ({1: AUTOMATIC, 2: AUTOMATIC, 3: UNLOADED}, 1, [2]),
        ({1: AUTOMATIC, 2: UNLOADED, 3: AUTOMATIC}, 0, [3, 1]),
    ],
)
def test_as_many_versions_are_kept_as_the_settings_ask_for_and_those_that_an_operator_loaded(
    choices: Mapping[int, Choice], max_versions: int, expected: list[int]
) -> None:
    assert kept(versions(choices), Rule(max_versions)) == expected


def test_a_pinned_model_keeps_nothing_else() -> None:
    assert kept(versions({1: AUTOMATIC, 2: LOADED, 3: PROMOTED}), Rule(3, pinned="1")) == [1]


def test_a_newer_version_that_waits_or_is_evaluated_is_not_affected() -> None:
    states = {2: LoadState.SHADOW, 3: PENDING}
    entries = versions({1: AUTOMATIC, 2: AUTOMATIC, 3: AUTOMATIC}, states)

    assert list(selection.replace_unneeded(entries, Rule(1))) == entries


def test_the_reason_why_a_version_is_not_served_names_the_choice() -> None:
    promoted = selection.replace_unneeded(versions({1: AUTOMATIC, 2: PROMOTED, 3: AUTOMATIC}), Rule(1))
    unloaded = selection.replace_unneeded(versions({1: AUTOMATIC, 2: UNLOADED}), Rule(1))
    pinned = selection.replace_unneeded(versions({1: AUTOMATIC, 2: AUTOMATIC}), Rule(1, pinned="1"))

    assert [entry.reason for entry in promoted] == [
        "Version 2 was promoted by an operator. Promote this version to serve it.",
        None,
        "A newer version is served.",
    ]
    assert unloaded[0].reason == "It was unloaded by an operator. Promote or load it to serve it again."
    assert pinned[0].reason == "The setting --pin selects version 1."


@pytest.mark.parametrize(
    ("choices", "states", "version", "expected"),
    [
        ({1: AUTOMATIC, 2: AUTOMATIC}, {}, "1", {1: PROMOTED, 2: AUTOMATIC}),
        ({1: PROMOTED, 2: AUTOMATIC}, {}, "2", {1: AUTOMATIC, 2: AUTOMATIC}),
        ({1: PROMOTED, 2: BESIDE}, {}, "2", {1: AUTOMATIC, 2: AUTOMATIC}),
        ({1: AUTOMATIC, 2: PROMOTED, 3: AUTOMATIC}, {}, "1", {1: PROMOTED, 2: AUTOMATIC, 3: AUTOMATIC}),
        ({1: UNLOADED, 2: UNLOADED}, {}, "1", {1: AUTOMATIC, 2: UNLOADED}),
        ({1: AUTOMATIC, 2: AUTOMATIC}, {2: FAILED}, "1", {1: AUTOMATIC, 2: AUTOMATIC}),
    ],
)
def test_promoting_the_newest_usable_version_returns_to_the_settings(
    choices: Mapping[int, Choice], states: Mapping[int, LoadState], version: str, expected: Mapping[int, Choice]
) -> None:
    promoted = selection.promote(versions(choices, states), version)

    assert {entry.number: entry.choice for entry in promoted} == expected
