"""Parts of sentences for users: lists that are cut short."""

from collections.abc import Sequence

_AT_MOST = 5


def list_items(items: Sequence[str], at_most: int = _AT_MOST) -> str:
    """Join items by commas; if there are more than `at_most`, an ellipsis ends the list."""
    return ", ".join([*items[:at_most], *(["…"] if len(items) > at_most else [])])


def list_quoted(names: Sequence[str], at_most: int = _AT_MOST) -> str:
    """Join names in quotation marks (`list_items`)."""
    return list_items([f"'{name}'" for name in names], at_most)


def join_quoted(names: Sequence[str], at_most: int = _AT_MOST) -> str:
    """Join names in quotation marks by commas and "and"; those beyond `at_most` are counted."""
    quoted = [f"'{name}'" for name in names[:at_most]]
    if len(names) > at_most:
        return f"{', '.join(quoted)} and {len(names) - at_most:,} more"
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
