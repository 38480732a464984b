"""Figures for groups of rows: does a model serve them alike?"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.core.results import Table

_SMALL = 100
_MAX_GROUPS = 12
_BANDS = 5
_WIDE = 20
"""Bands of numbers that lie further apart than this have whole numbers for edges."""


def group_table(
    column: pl.Series, probabilities: NDArray[np.floating], targets: NDArray[np.integer], labels: Sequence[str]
) -> Table:
    """Accuracy of each group of an audit column, and with two classes how often the second is given, and found."""
    names = grouped(column)
    said = probabilities.argmax(axis=1)
    rows = []
    for name in ordered(set(names)):
        members = np.array([other == name for other in names])
        rows.append((name, *_figures(said[members], targets[members], len(labels))))
    header: tuple[str, ...] = ("group", "n", "accuracy")
    note = f"Groups of fewer than {_SMALL} rows are marked *: their figures are uncertain."
    if len(labels) == 2:
        header = (*header, f"is {labels[1]}", f"said {labels[1]}", "found of those (TPR)")
        rates = [float(row[4]) for row in rows if not row[1].endswith("*")]
        if len(rates) > 1:
            note += (
                f" The shares said to be {labels[1]} differ by {max(rates) - min(rates):.3f} between the larger groups."
            )
    return Table(f"By {column.name}", header, tuple(rows), note)


def _figures(said: NDArray[np.integer], targets: NDArray[np.integer], classes: int) -> tuple[str, ...]:
    count = f"{len(said)}{'*' if len(said) < _SMALL else ''}"
    accuracy = f"{(said == targets).mean():.3f}"
    if classes != 2:
        return count, accuracy
    positive = targets == 1
    found = f"{(said[positive] == 1).mean():.3f}" if positive.any() else "–"
    return count, accuracy, f"{positive.mean():.3f}", f"{(said == 1).mean():.3f}", found


def grouped(column: pl.Series) -> list[str]:
    """The group of each value: its band for numbers of many values, else itself; the rarest categories together."""
    if column.dtype.is_numeric() and column.n_unique() > _MAX_GROUPS:
        return _bands(column.cast(pl.Float64))
    values = column.cast(pl.String).fill_null("missing").to_list()
    counts = column.cast(pl.String).value_counts(sort=True)
    kept = {*counts[column.name].head(_MAX_GROUPS).to_list(), "missing"}
    return [value if value in kept else "other" for value in values]


def ordered(names: Iterable[str]) -> list[str]:
    """Groups in the order of their numbers, if they have any; those without a value last."""
    return sorted(names, key=lambda name: (name == "missing", _first_number(name), name))


def _bands(column: pl.Series) -> list[str]:
    """Five bands of about as many rows each, with whole numbers for edges, or with round ones where all are small."""
    known = column.drop_nulls().to_numpy()
    whole = bool((known == known.round()).all()) or float(np.ptp(known)) >= _WIDE
    edges = np.quantile(known, np.linspace(0, 1, _BANDS + 1)[1:-1])
    edges = np.unique(edges.round() if whole else _rounded(edges, float(np.ptp(known))))
    names = [f"up to {edges[0]:g}"]
    names += [f"{low + 1:g} to {high:g}" if whole else f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    names.append(f"over {edges[-1]:g}")
    return ["missing" if value is None else names[int(np.searchsorted(edges, value))] for value in column.to_list()]


def _rounded(edges: NDArray[np.floating], width: float) -> NDArray[np.floating]:
    """To a hundredth of the width or less, in the decimal system."""
    return edges.round(max(0, 2 - math.floor(math.log10(width))))


def _first_number(name: str) -> float:
    """Bands in the order of their numbers; `up to` before all."""
    if name.startswith("up to"):
        return float("-inf")
    numbers = [word for word in name.split() if word.replace(".", "", 1).lstrip("-").isdigit()]
    return float(numbers[0]) if numbers else 0.0
