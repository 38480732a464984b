"""Near names: what somebody who mistyped the name of a field or a column probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

_MIN_SIMILARITY = 0.7
_MAX_COMPARED = 80
"""Characters of a name that are compared; a client can send names of any length."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a question that names the known name that is nearest to a name, if one is near; otherwise nothing."""
    by_key = {_key(candidate): candidate for candidate in known}
    nearest = get_close_matches(_key(name[:_MAX_COMPARED]), by_key, n=1, cutoff=_MIN_SIMILARITY)
    return f" Did you mean '{by_key[nearest[0]]}'?" if nearest else ""


def _key(name: str) -> str:
    return name.lower().replace("_", "-")
