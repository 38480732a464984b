"""What training produces: metrics, tables, figures and histories. Values only; computing them is done elsewhere."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.manifest import Metric

Vectors = NDArray[np.floating]


@dataclass(frozen=True)
class Table:
    """A table of a report or a card."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture of a report."""

    title: str
    png: bytes
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What is known of a trained network: for the manifest, the card and the report.

    Attributes:
        metrics: the figures, the most important first, each with its protocol.
        notes: sentences that say how to read them.
        tables: per class, per group, against a baseline.
        figures: for the report only.
        failures: what it is known to get wrong.
        caveats: what a user should know of its use, beside what the recipe says.
    """

    metrics: tuple[Metric, ...]
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    failures: tuple[str, ...] = ()
    caveats: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Trained:
    """One finished training: its seed, the network with its best weights, and the scores of that epoch."""

    seed: int
    network: nn.Module
    scores: dict[str, float]


@dataclass(frozen=True)
class EpochLog:
    """What an epoch came to. `rate` is the last one of the fastest group; `seconds` include the validation."""

    epoch: int
    stage: str
    loss: float
    rate: float
    seconds: float
    samples_per_second: float
    scores: dict[str, float]


@dataclass(frozen=True)
class EmbeddingTable:
    """What was learnt of the values of one field.

    Attributes:
        field: the column, or `user`, or `item`.
        values: what each row of `vectors` stands for; None where it stands for no value (one that is missing, or was
            not seen in training).
        vectors: float (n, d).
        names: what to call them for people where the values say little (a film's title for its number); empty: as the
            values.
    """

    field: str
    values: tuple[str | None, ...]
    vectors: Vectors
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.values) != len(self.vectors):
            raise ValueError(f"{self.field}: {len(self.values)} values and {len(self.vectors)} vectors.")


@dataclass(frozen=True)
class RunResult:
    """What training gave: the networks with their histories, those of the phases before them, and what it took."""

    trained: tuple[Trained, ...]
    histories: tuple[tuple[EpochLog, ...], ...]
    hardware: str
    before: tuple[tuple[EpochLog, ...], ...] = ()

    @property
    def minutes(self) -> float:
        """Of training and validation, over all phases and seeds."""
        return sum(row.seconds for rows in (*self.before, *self.histories) for row in rows) / 60
