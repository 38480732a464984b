"""Finds the columns of a table by the names that users give, or by those that are common."""

from collections.abc import Sequence
from pathlib import Path

from tasks.near_names import suggest
from training.core.errors import CannotTrain


def find_column(columns: Sequence[str], given: str, common: Sequence[str], path: Path) -> str | None:
    """Return the column of the given name or, if that is empty, the first that has a common name; None if none has.

    Common names are compared without case, spaces, `_` and `-`; the first of them that is there counts.

    Raises CannotTrain if there is no column of the given name.
    """
    if given:
        if given not in columns:
            listed = ", ".join(columns)[:500]
            raise CannotTrain(f"{path} has no column '{given}'; its columns are {listed}.{suggest(given, columns)}")
        return given
    by_key = {_key(column): column for column in reversed(columns)}
    return next((by_key[key] for key in map(_key, common) if key in by_key), None)


def _key(name: str) -> str:
    return "".join(character for character in name.lower() if character not in " _-")
