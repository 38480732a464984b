"""Near names: what somebody who mistyped the name of a field, a column or a setting probably meant."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches

_MIN_SIMILARITY = 0.7
"""How similar a name must be to be suggested: `max-bach` is 0.94 to `max-batch`, `foo` 0.29 to `host`."""
_MAX_COMPARED = 80
"""Characters of a name that are compared; a client can send names of any length."""


def nearest_name(name: str, known: Iterable[str], key: Callable[[str], str] = str) -> str | None:
    """Return the known name that is nearest to a name; None if none is near. `key` strips what all names share."""
    by_key = {_key(key(candidate)): candidate for candidate in known}
    nearest = get_close_matches(_key(key(name[:_MAX_COMPARED])), by_key, n=1, cutoff=_MIN_SIMILARITY)
    return by_key[nearest[0]] if nearest else None


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a question that names the known name that is nearest to a name, if one is near; otherwise nothing."""
    nearest = nearest_name(name, known)
    return "" if nearest is None else f" Did you mean '{nearest}'?"


def _key(name: str) -> str:
    return name.lower().replace("_", "-")
