"""Gradient boosting beside the network: what to beat on a table, on the very same columns and rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks._tables import MISSING, TableSchema
from training.data.tables import RowSamples

Numbers = NDArray[np.floating]

_GROUPED = 255
"""How many categories of a column scikit-learn's boosting can keep apart as such."""
_MAX_TUNING_ROWS = 100_000
"""Rows on which settings are compared; more would take hours and change little."""
_TRIED: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.06, "max_leaf_nodes": 31},
    {"learning_rate": 0.06, "max_leaf_nodes": 15},
    {"learning_rate": 0.03, "max_leaf_nodes": 63, "l2_regularization": 5.0},
    {"learning_rate": 0.06, "max_leaf_nodes": 31, "categories_in_order": 1},
    {"learning_rate": 0.06, "max_leaf_nodes": 15, "categories_in_order": 1},
)
"""The settings that are compared; categories in order: as numbers, which suits the hours of a day."""


def features(rows: RowSamples) -> Numbers:
    """Categories as numbers beside the numbers; a missing category as NaN."""
    categories = rows.inputs["categories"].double()
    parts = [categories.masked_fill(categories == MISSING, torch.nan), rows.inputs["numbers"].double()]
    found: Numbers = torch.cat(parts, dim=1).numpy()
    return found


def grouped(table: TableSchema) -> list[bool]:
    """Which of the features are categories that boosting keeps apart."""
    return [len(column.values) + 2 <= _GROUPED for column in table.categories] + [False] * len(table.numbers)


def boosted_classes(table: TableSchema, train: RowSamples, valid: RowSamples, classes: int, seed: int) -> Numbers:
    """Probabilities (n, classes) of the validation rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    booster = HistGradientBoostingClassifier(
        max_iter=500,
        learning_rate=0.06,
        early_stopping=True,
        categorical_features=grouped(table),
        random_state=seed,
    )
    booster.fit(features(train), train.targets.numpy())
    found: Numbers = np.zeros((len(valid), classes))
    found[:, booster.classes_] = booster.predict_proba(features(valid))
    return found


@dataclass(frozen=True)
class Boosted:
    """What boosting says of the validation rows, one array a seed, as it is learnt; and how it was tuned, in words."""

    found: tuple[Numbers, ...]
    words: str


def boosted_numbers(
    table: TableSchema,
    train: RowSamples,
    valid: RowSamples,
    inner: NDArray[np.bool_],
    judged: Callable[[Numbers, NDArray[np.bool_]], float],
    seeds: list[int],
) -> Boosted:
    """Trains with each of a few settings, keeps the best, and trains that anew for each seed.

    `inner` says of each training row whether it is held out while settings are compared: the rows that validate are
    not looked at. `judged` gives the error of what was found for those rows, and which they are.
    """
    inputs, targets = features(train), train.targets.numpy()
    some = np.zeros(len(targets), bool)
    some[-_MAX_TUNING_ROWS:] = True
    fitted, kept = ~inner & some, inner & some
    errors = []
    for settings in _TRIED:
        booster = _regressor(table, seeds[0], settings).fit(inputs[fitted], targets[fitted])
        errors.append(judged(booster.predict(inputs[kept]), kept))
    best = _TRIED[int(np.argmin(errors))]
    asked = features(valid)
    found = tuple(_regressor(table, seed, best).fit(inputs, targets).predict(asked) for seed in seeds)
    shown = ", ".join(f"{name} {value:g}" for name, value in best.items()).replace("_", " ")
    return Boosted(
        found,
        f"scikit-learn's HistGradientBoostingRegressor on the same columns, rows and target, stopped early on a tenth "
        f"of the training rows; the best of {len(_TRIED)} settings by rows held out of the training rows ({shown})",
    )


def _regressor(table: TableSchema, seed: int, settings: dict[str, Any]) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    own = {name: value for name, value in settings.items() if name != "categories_in_order"}
    return HistGradientBoostingRegressor(
        max_iter=1500,
        early_stopping=True,
        n_iter_no_change=20,
        categorical_features=None if "categories_in_order" in settings else grouped(table),
        random_state=seed,
        **own,
    )
