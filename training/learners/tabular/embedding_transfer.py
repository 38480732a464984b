"""Measure whether embeddings help other models: train the same models on one-hot categories and on embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.results import EmbeddingTable, Table
from training.data.tables import RowSamples

FloatArray = NDArray[np.floating]
Indices = NDArray[np.integer]

_MAX_TRAIN_ROWS, _MAX_VALID_ROWS = 20_000, 5_000
_NEIGHBOURS = 10


@dataclass(frozen=True)
class EmbeddingTransfer:
    """Compares models on one-hot categories with models on embeddings.

    Attributes:
        train: rows to train the models on. The network learnt its embeddings from them too.
        valid: rows to measure the models on.
        is_classification: whether the target is a class.
        metric: name of the metric.
        score: computes the metric from predictions of the validation rows at these indices.
    """

    train: RowSamples
    valid: RowSamples
    is_classification: bool
    metric: str
    score: Callable[[Any, Indices], float]

    def compare(self, embeddings: Sequence[EmbeddingTable]) -> Table:
        """Tabulate the metric of two models, each with one-hot columns and with the embeddings."""
        train, valid = _spread(len(self.train), _MAX_TRAIN_ROWS), _spread(len(self.valid), _MAX_VALID_ROWS)
        targets = self.train.targets.numpy()[train]
        numbers = _standardise(self.train, self.valid, train, valid)
        encoders: dict[str, Callable[[RowSamples, Indices, Sequence[EmbeddingTable]], FloatArray]] = {
            "one-hot": one_hot,
            "embeddings": embed,
        }
        title, header = "Embeddings in other models", ("", *encoders)
        if self.is_classification and len(set(targets.tolist())) < 2:
            return Table(title, header, (), "The training rows are of one class.")
        rows = []
        for name, new_model in self._models(len(train)).items():
            scores = []
            for encode in encoders.values():
                train_inputs = np.hstack([encode(self.train, train, embeddings), numbers[0]])
                valid_inputs = np.hstack([encode(self.valid, valid, embeddings), numbers[1]])
                model = new_model().fit(train_inputs, targets)
                scores.append(f"{self.score(model.predict(valid_inputs), valid):.4f}")
            rows.append((name, *scores))
        note = (
            f"The {self.metric} of other models on {len(valid):,} validation rows, trained on {len(train):,} rows with "
            "the same numbers, standardised; the network learnt the embeddings from the training rows."
        )
        return Table(title, header, tuple(rows), note)

    def _models(self, rows: int) -> dict[str, Callable[[], Any]]:
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

        neighbours = min(_NEIGHBOURS, rows)
        if self.is_classification:
            return {
                "logistic regression": lambda: LogisticRegression(max_iter=2000),
                f"{neighbours} nearest neighbours": lambda: KNeighborsClassifier(neighbours),
            }
        return {
            "ridge regression": Ridge,
            f"{neighbours} nearest neighbours": lambda: KNeighborsRegressor(neighbours),
        }


def one_hot(rows: RowSamples, indices: Indices, tables: Sequence[EmbeddingTable]) -> FloatArray:
    """Encode the categories of these rows one-hot; a missing and an unknown value have a column too."""
    categories = rows.inputs["categories"].numpy()[indices]
    return np.hstack([np.eye(len(table.values))[categories[:, i]] for i, table in enumerate(tables)])


def embed(rows: RowSamples, indices: Indices, tables: Sequence[EmbeddingTable]) -> FloatArray:
    """Encode the categories of these rows by their embeddings."""
    categories = rows.inputs["categories"].numpy()[indices]
    return np.hstack([table.vectors[categories[:, i]] for i, table in enumerate(tables)])


def _standardise(
    train: RowSamples, valid: RowSamples, train_indices: Indices, valid_indices: Indices
) -> tuple[FloatArray, FloatArray]:
    """Standardise the numbers of both by the statistics of the training rows; a missing value becomes the mean."""
    train_numbers = train.inputs["numbers"].double().numpy()[train_indices]
    valid_numbers = valid.inputs["numbers"].double().numpy()[valid_indices]
    known = ~np.isnan(train_numbers)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, train_numbers, 0).sum(axis=0) / count
    deviation = np.sqrt(np.where(known, (train_numbers - mean) ** 2, 0).sum(axis=0) / count)
    scale = np.where(deviation > 0, deviation, 1)
    return np.nan_to_num((train_numbers - mean) / scale), np.nan_to_num((valid_numbers - mean) / scale)


def _spread(count: int, limit: int) -> Indices:
    """Return at most `limit` indices, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).astype(np.int64))
