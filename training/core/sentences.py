"""Parts of sentences for users: counts, and lists that are cut short."""

from collections.abc import Sequence

_AT_MOST = 5


def count_of(number: int, noun: str) -> str:
    """Return `1 file` or `1,000 files`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def plain_number(value: float, digits: int = 6) -> str:
    """Return a number with this many significant digits, but never with an exponent above 1: `1,041,420`, `0.00123`."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def signed(value: float) -> str:
    """Return a difference with its sign and four decimals; never `-0.0000`."""
    return f"{round(value, 4) + 0.0:+.4f}"


def was(number: int) -> str:
    """Return the verb after `count_of`."""
    return "was" if number == 1 else "were"


def list_items(items: Sequence[str], at_most: int = _AT_MOST) -> str:
    """Join items by commas; if there are more than `at_most`, an ellipsis ends the list."""
    return ", ".join([*items[:at_most], *(["…"] if len(items) > at_most else [])])


def list_quoted(names: Sequence[str], at_most: int = _AT_MOST) -> str:
    """Join names in quotation marks (`list_items`)."""
    return list_items([f"'{name}'" for name in names], at_most)


def join_items(items: Sequence[str], at_most: int = _AT_MOST) -> str:
    """Join items by commas and "and"; those beyond `at_most` are counted."""
    if len(items) > at_most:
        return f"{', '.join(items[:at_most])} and {len(items) - at_most:,} more"
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def join_quoted(names: Sequence[str], at_most: int = _AT_MOST) -> str:
    """Join names in quotation marks (`join_items`)."""
    return join_items([f"'{name}'" for name in names], at_most)
