"""Gradient boosting on the same columns and rows, as the baseline for a network for tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks._tables import MISSING, TableSchema
from training.core.results import Comparison
from training.data.tables import RowSamples

FloatArray = NDArray[np.floating]

BOOSTING = "gradient boosting"
_MAX_CATEGORIES = 255
"""Maximum number of categories in a column that scikit-learn's boosting supports."""
_MAX_TUNING_ROWS = 100_000
"""Rows on which settings are compared; more would take hours and change little."""
_SETTINGS: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.06, "max_leaf_nodes": 31},
    {"learning_rate": 0.06, "max_leaf_nodes": 15},
    {"learning_rate": 0.03, "max_leaf_nodes": 63, "l2_regularization": 5.0},
    {"learning_rate": 0.06, "max_leaf_nodes": 31, "categories_in_order": 1},
    {"learning_rate": 0.06, "max_leaf_nodes": 15, "categories_in_order": 1},
)
"""The settings that are compared. `categories_in_order` treats categories as numbers, which suits hours of a day."""


def boosting_features(rows: RowSamples) -> FloatArray:
    """Return the indices of categories and the numbers as one array (n, columns), NaN where a value is missing."""
    categories = rows.inputs["categories"].double()
    parts = [categories.masked_fill(categories == MISSING, torch.nan), rows.inputs["numbers"].double()]
    features: FloatArray = torch.cat(parts, dim=1).numpy()
    return features


def categorical_mask(table: TableSchema) -> list[bool]:
    """Say for each feature whether boosting treats it as a category."""
    return [len(column.values) + 2 <= _MAX_CATEGORIES for column in table.categories] + [False] * len(table.numbers)


def advise(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Return the advice to use gradient boosting if it is surely better than the network."""
    worse = [
        comparison.metric for comparison in comparisons if comparison.other == BOOSTING and comparison.is_surely_worse
    ]
    return (
        (f"Gradient boosting is surely better ({', '.join(worse)}): where nothing else counts, use it instead.",)
        if worse
        else ()
    )


@dataclass(frozen=True)
class BoostedClassification:
    """Probabilities (n, classes) of the validation rows by gradient boosting, and a description of the model."""

    probabilities: FloatArray
    description: str


def boost_classifier(
    table: TableSchema, train: RowSamples, valid: RowSamples, classes: int, seed: int
) -> BoostedClassification:
    """Train on one set of rows and predict the other; early stopping needs two rows of each class."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    targets = train.targets.numpy()
    counts = np.unique(targets, return_counts=True)[1]
    probabilities: FloatArray = np.zeros((len(valid), classes))
    description = "scikit-learn's HistGradientBoostingClassifier on the same columns and rows, not tuned"
    if len(counts) == 1:
        probabilities[:, targets[0]] = 1
        return BoostedClassification(probabilities, f"{description}; the training rows are of one class")
    stops_early = counts.min() > 1 and len(targets) // 10 >= len(counts)
    booster = HistGradientBoostingClassifier(
        max_iter=500 if stops_early else 100,
        learning_rate=0.06,
        early_stopping=bool(stops_early),
        categorical_features=categorical_mask(table),
        random_state=seed,
    )
    booster.fit(boosting_features(train), targets)
    probabilities[:, booster.classes_] = booster.predict_proba(boosting_features(valid))
    how = "with early stopping on a tenth of the training rows" if stops_early else "with 100 trees per class"
    return BoostedClassification(probabilities, f"{description}, {how}")


@dataclass(frozen=True)
class BoostedRegression:
    """Predictions of gradient boosting.

    Attributes:
        predictions: of the validation rows, transformed as in training; one array (n,) per seed.
        description: of the model and how it was tuned.
    """

    predictions: tuple[FloatArray, ...]
    description: str


def boost_regressor(
    table: TableSchema,
    train: RowSamples,
    valid: RowSamples,
    held_out: NDArray[np.bool_],
    loss: Callable[[FloatArray, NDArray[np.bool_]], float],
    seeds: list[int],
) -> BoostedRegression:
    """Train with each of a few settings, then train the best settings anew for each seed.

    Args:
        table: the columns of both sets of rows.
        train: the training rows.
        valid: the rows to predict. They take no part in choosing the settings.
        held_out: bool over the training rows, those that the settings are compared on.
        loss: the error of predictions for the training rows that a mask selects.
        seeds: of the regressors.
    """
    inputs, targets = boosting_features(train), train.targets.numpy()
    latest = np.zeros(len(targets), bool)
    latest[-_MAX_TUNING_ROWS:] = True
    fitted, compared = ~held_out & latest, held_out & latest
    losses = []
    for settings in _SETTINGS:
        booster = _regressor(table, seeds[0], settings).fit(inputs[fitted], targets[fitted])
        losses.append(loss(booster.predict(inputs[compared]), compared))
    best = _SETTINGS[int(np.argmin(losses))]
    valid_inputs = boosting_features(valid)
    predictions = tuple(_regressor(table, seed, best).fit(inputs, targets).predict(valid_inputs) for seed in seeds)
    shown = ", ".join(f"{name} {value:g}" for name, value in best.items()).replace("_", " ")
    return BoostedRegression(
        predictions,
        f"scikit-learn's HistGradientBoostingRegressor on the same columns, rows and target, with early stopping on a "
        f"tenth of the training rows; the best of {len(_SETTINGS)} settings on held-out training rows ({shown})",
    )


def _regressor(table: TableSchema, seed: int, settings: dict[str, Any]) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    parameters = {name: value for name, value in settings.items() if name != "categories_in_order"}
    return HistGradientBoostingRegressor(
        max_iter=1500,
        early_stopping=True,
        n_iter_no_change=20,
        categorical_features=None if "categories_in_order" in settings else categorical_mask(table),
        random_state=seed,
        **parameters,
    )
