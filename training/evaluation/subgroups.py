"""Metrics per subgroup of rows, to compare how well a model serves each."""

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
"""Numbers whose range is at least this have bands with whole numbers as edges."""


def subgroup_table(
    column: pl.Series, probabilities: NDArray[np.floating], targets: NDArray[np.integer], labels: Sequence[str]
) -> Table:
    """Return the accuracy of each subgroup; with two classes also the rates of the second class, and its recall."""
    groups = assign_groups(column)
    predicted = probabilities.argmax(axis=1)
    rows = []
    for group in sort_groups(set(groups)):
        members = np.array([other == group for other in groups])
        rows.append((group, *_group_metrics(predicted[members], targets[members], len(labels))))
    header: tuple[str, ...] = ("group", "n", "accuracy")
    is_marked = any(row[1].endswith("*") for row in rows)
    note = f"Groups of fewer than {_SMALL} rows are marked *: their metrics are uncertain." if is_marked else ""
    if len(labels) == 2:
        header = (*header, f"true {labels[1]}", f"predicted {labels[1]}", "recall (TPR)")
        rates = [float(row[4]) for row in rows if not row[1].endswith("*")]
        if len(rates) > 1:
            note += f" The rates of predicted {labels[1]} differ by {max(rates) - min(rates):.3f} among larger groups."
    return Table(f"By {column.name}", header, tuple(rows), note.strip())


def _group_metrics(predicted: NDArray[np.integer], targets: NDArray[np.integer], classes: int) -> tuple[str, ...]:
    count = f"{len(predicted)}{'*' if len(predicted) < _SMALL else ''}"
    accuracy = f"{(predicted == targets).mean():.3f}"
    if classes != 2:
        return count, accuracy
    positive = targets == 1
    recall = f"{(predicted[positive] == 1).mean():.3f}" if positive.any() else "–"
    return count, accuracy, f"{positive.mean():.3f}", f"{(predicted == 1).mean():.3f}", recall


def assign_groups(column: pl.Series) -> list[str]:
    """Return the group of each value: a band for numbers with many values, else the value; rare values are `other`."""
    if column.dtype.is_numeric() and column.n_unique() > _MAX_GROUPS:
        return _assign_bands(column.cast(pl.Float64))
    values = column.cast(pl.String).fill_null("missing").to_list()
    counts = column.cast(pl.String).value_counts(sort=True)
    kept = {*counts[column.name].head(_MAX_GROUPS).to_list(), "missing"}
    return [value if value in kept else "other" for value in values]


def sort_groups(names: Iterable[str]) -> list[str]:
    """Sort groups by their numbers, if they have any; `missing` comes last."""
    return sorted(names, key=lambda name: (name == "missing", _first_number(name), name))


def _assign_bands(column: pl.Series) -> list[str]:
    """Five bands with about as many rows each; their edges are whole numbers, or rounded where the range is small."""
    known = column.drop_nulls().to_numpy()
    integer_edges = bool((known == known.round()).all()) or float(np.ptp(known)) >= _WIDE
    edges = np.quantile(known, np.linspace(0, 1, _BANDS + 1)[1:-1])
    edges = np.unique(edges.round() if integer_edges else _round_edges(edges, float(np.ptp(known))))
    names = [f"up to {edges[0]:g}"]
    names += [f"{low + 1:g} to {high:g}" if integer_edges else f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    names.append(f"over {edges[-1]:g}")
    return ["missing" if value is None else names[int(np.searchsorted(edges, value))] for value in column.to_list()]


def _round_edges(edges: NDArray[np.floating], value_range: float) -> NDArray[np.floating]:
    """Round to a power of ten that is at most a hundredth of the range."""
    return edges.round(max(0, 2 - math.floor(math.log10(value_range))))


def _first_number(name: str) -> float:
    """The first number in a band's name; `up to` sorts before all."""
    if name.startswith("up to"):
        return float("-inf")
    numbers = [word for word in name.split() if word.replace(".", "", 1).lstrip("-").isdigit()]
    return float(numbers[0]) if numbers else 0.0
