"""Reads numbers from text: decimal points or commas, thousands separators, and whole numbers of any length."""

import re
from dataclasses import dataclass

import polars as pl

_GROUP_MARKS = " \u00a0\u202f'\u2019"
"""Marks between thousands in either style: spaces of three kinds, and the Swiss apostrophe."""
_SIGNS = "$€£¥%"
_PADDED = r"^[-+]?0[0-9]"
_WHOLE = r"^[-+]?[0-9]+$"
MAX_EXACT = 2**53
"""Floats hold all whole numbers up to this one; larger ones are identifiers, and not amounts."""


@dataclass(frozen=True)
class NumberStyle:
    """How the numbers of a column may be written.

    Attributes:
        known: how many values there are.
        points, commas: how many of them are numbers if the point, or the comma, is the decimal sign.
        has_commas: whether a value that is a number contains a comma.
        has_points: whether a value that is a number contains a point.
    """

    known: int
    points: int
    commas: int
    has_commas: bool
    has_points: bool

    @property
    def best(self) -> int:
        """How many values are numbers in the style that suits better."""
        return max(self.points, self.commas)

    @property
    def decimal(self) -> str:
        """The decimal sign, if the values decide it; otherwise empty."""
        if self.points == self.commas:
            return ""
        return "." if self.points > self.commas else ","


def find_style(texts: pl.Series) -> NumberStyle:
    """Count the numbers of a column of stripped texts in either style."""
    known = texts.drop_nulls()
    point, comma = (known.str.contains(_pattern(decimal)) for decimal in (".", ","))
    numbers = known.filter(point | comma)
    return NumberStyle(
        len(known),
        int(point.sum()),
        int(comma.sum()),
        bool(numbers.str.contains(",", literal=True).any()),
        bool(numbers.str.contains(".", literal=True).any()),
    )


def _pattern(decimal: str) -> str:
    mark, other = re.escape(decimal), "," if decimal == "." else "."
    plain = rf"[0-9]+(?:{mark}[0-9]*)?|{mark}[0-9]+"
    grouped = rf"[1-9][0-9]{{0,2}}(?:[{other}{_GROUP_MARKS}][0-9]{{3}})+(?:{mark}[0-9]*)?"
    return rf"^[-+\u2212]?(?:{plain}|{grouped})(?:[eE][-+]?[0-9]{{1,4}})?$"


def find_sign(texts: pl.Series, min_fraction: float) -> str:
    """Return the currency or percent sign before or after the number in at least this fraction of the stripped texts.

    Empty if there is none.
    """
    known = texts.drop_nulls()
    for sign in _SIGNS if len(known) else "":
        signed = known.filter(known.str.contains(sign, literal=True))
        if (without_sign(signed, sign) != signed).sum() >= max(min_fraction * len(known), 1):
            return sign
    return ""


def without_sign(texts: pl.Series, sign: str) -> pl.Series:
    """Leave a sign before or after numbers out, as in -$5, $ 5, 5 % or 1.000,50 €; other texts stay as they are."""
    mark, minus = re.escape(sign), "[-+\u2212]?"
    bare = texts.str.replace(rf"^({minus})\s*{mark}\s*({minus}[.,]?[0-9].*)$", "${1}${2}")
    bare = bare.str.replace(rf"^({minus}[.,]?[0-9].*?)\s*{mark}$", "${1}")
    is_number = bare.str.contains(_pattern(".")) | bare.str.contains(_pattern(","))
    return pl.select(pl.when(is_number).then(bare).otherwise(texts)).to_series().alias(texts.name)


def to_plain(texts: pl.Series, decimal: str) -> pl.Series:
    """Write numbers with a decimal point and nothing between thousands; other texts become null."""
    numbers = pl.select(pl.when(texts.str.contains(_pattern(decimal))).then(texts)).to_series()
    other = "," if decimal == "." else "."
    plain = numbers.str.replace_all(rf"[{other}{_GROUP_MARKS}]", "").str.replace("\u2212", "-", literal=True)
    return plain.str.replace(decimal, ".", literal=True).alias(texts.name)


def parse_numbers(plain: pl.Series) -> pl.Series | None:
    """Convert texts of `to_plain` to integers or floats; None if they are whole numbers beyond 64 bits."""
    known = plain.drop_nulls()
    if known.str.contains(_WHOLE).all():
        integers = plain.cast(pl.Int64, strict=False)
        return integers if integers.null_count() == plain.null_count() else None
    return plain.cast(pl.Float64, strict=False)


def padded_example(plain: pl.Series) -> str:
    """Return a number with leading zeros, such as 00123, which is a code; empty if there is none."""
    padded = plain.filter(plain.str.contains(_PADDED))
    return str(padded[0]) if len(padded) else ""


def whole_floats_to_integers(values: pl.Series) -> pl.Series:
    """Return floats that are all whole numbers, as programs write integers with gaps, as integers; others as is."""
    if not values.dtype.is_float():
        return values
    known = values.drop_nulls().drop_nans()
    is_whole = len(known) and bool((known.is_finite() & (known % 1 == 0) & (known.abs() <= MAX_EXACT)).all())
    return values.fill_nan(None).cast(pl.Int64) if is_whole else values


def unit_example(texts: pl.Series) -> str:
    """Return a value if nearly all texts are numbers with a unit or sign, such as 12 kg, 5 % or $3; otherwise empty."""
    known = texts.drop_nulls()
    has_unit = known.str.contains(
        r"^[-+]?(?:[$€£¥]|[A-Z]{3}) ?[0-9][0-9.,' ]*$|^[-+]?[0-9][0-9.,' ]*? ?(?:[%$€£¥°]|[A-Za-zµ°²³/]{1,8})$"
    )
    return str(known.filter(has_unit)[0]) if len(known) and has_unit.mean() >= 0.9 else ""  # type: ignore[operator]
