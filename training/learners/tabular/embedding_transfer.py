"""Do embeddings help other models? The same rows given to them twice: a column for each category, or its embedding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.results import EmbeddingTable, Table
from training.data.tables import RowSamples

Numbers = NDArray[np.floating]

_MAX_TRAIN_ROWS, _MAX_VALID_ROWS = 20_000, 5_000
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Reuse:
    """What is compared.

    Attributes:
        train: the rows that the other models learn from; the network learnt its embeddings from them too.
        valid: the rows that they are measured on.
        classes: whether the target is one of classes.
        measure: what the figure is called.
        judged: the figure of what a model said of some validation rows, which are given by their places.
    """

    train: RowSamples
    valid: RowSamples
    classes: bool
    measure: str
    judged: Callable[[Any, NDArray[np.integer]], float]

    def table(self, embeddings: Sequence[EmbeddingTable]) -> Table:
        """Two models, each with one-hot columns and with the embeddings."""
        fitted, kept = _some(len(self.train), _MAX_TRAIN_ROWS), _some(len(self.valid), _MAX_VALID_ROWS)
        targets = self.train.targets.numpy()[fitted]
        inputs: dict[str, Callable[[RowSamples, NDArray[np.integer]], Numbers]] = {
            "a column for each category": lambda rows, places: one_hot(rows, places, embeddings),
            "embeddings": lambda rows, places: embedded(rows, places, embeddings),
        }
        rows = []
        for name, made in self._models().items():
            figures = []
            for each in inputs.values():
                columns = [each(self.train, fitted), each(self.valid, kept)]
                standard = _standardised(self.train, self.valid, fitted, kept)
                joined = [np.hstack([left, right]) for left, right in zip(columns, standard, strict=True)]
                model = made().fit(joined[0], targets)
                figures.append(f"{self.judged(model.predict(joined[1]), kept):.4f}")
            rows.append((name, *figures))
        note = (
            f"The {self.measure} of other models on {len(kept):,} validation rows, with {len(fitted):,} rows to learn "
            "from and the same numbers, standardised; the embeddings were learnt by the network from the training rows."
        )
        return Table("Embeddings in other models", ("", *inputs), tuple(rows), note)

    def _models(self) -> dict[str, Callable[[], Any]]:
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

        if self.classes:
            return {
                "logistic regression": lambda: LogisticRegression(max_iter=2000),
                f"{_NEIGHBOURS} nearest neighbours": lambda: KNeighborsClassifier(_NEIGHBOURS),
            }
        return {
            "ridge regression": Ridge,
            f"{_NEIGHBOURS} nearest neighbours": lambda: KNeighborsRegressor(_NEIGHBOURS),
        }


def one_hot(rows: RowSamples, places: NDArray[np.integer], tables: Sequence[EmbeddingTable]) -> Numbers:
    """A column of zeros and ones for each value of each field, no value included."""
    categories = rows.inputs["categories"].numpy()[places]
    return np.hstack([np.eye(len(table.values))[categories[:, i]] for i, table in enumerate(tables)])


def embedded(rows: RowSamples, places: NDArray[np.integer], tables: Sequence[EmbeddingTable]) -> Numbers:
    """The vector of each row's value of each field."""
    categories = rows.inputs["categories"].numpy()[places]
    return np.hstack([table.vectors[categories[:, i]] for i, table in enumerate(tables)])


def _standardised(
    train: RowSamples, valid: RowSamples, fitted: NDArray[np.integer], kept: NDArray[np.integer]
) -> tuple[Numbers, Numbers]:
    """The numbers of both, by the mean and deviation of the former; the mean where one is missing."""
    known, asked = train.inputs["numbers"].double().numpy()[fitted], valid.inputs["numbers"].double().numpy()[kept]
    here = ~np.isnan(known)
    count = np.maximum(here.sum(axis=0), 1)
    mean = np.where(here, known, 0).sum(axis=0) / count
    deviation = np.sqrt(np.where(here, (known - mean) ** 2, 0).sum(axis=0) / count)
    scale = np.where(deviation > 0, deviation, 1)
    return np.nan_to_num((known - mean) / scale), np.nan_to_num((asked - mean) / scale)


def _some(count: int, most: int) -> NDArray[np.integer]:
    """Places evenly from the first to the last, at most so many."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
