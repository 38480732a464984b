"""What training produces: metrics, tables, figures and histories. Values only; they are computed elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.contract import Task
from tasks.manifest import Metric

Vectors = NDArray[np.floating]


@dataclass(frozen=True)
class Table:
    """A table in a report or a card."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """An image in a report, as a PNG file."""

    title: str
    png: bytes
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a trained network, for the manifest, the card and the report.

    Attributes:
        metrics: the metrics, most important first, each with its protocol.
        notes: sentences that explain how to read them.
        tables: per class, per subgroup, against a baseline.
        figures: for the report only.
        failures: known failures.
        caveats: what users should know, in addition to the recipe's caveats.
    """

    metrics: tuple[Metric, ...]
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    failures: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Remeasured:
    """A published task with parameters that were measured again, for its next version.

    Attributes:
        task: the task with the new parameters.
        metrics: metrics of the manifest whose values have been measured again, by name.
        notes: sentences for the card.
        tables: for the card.
        requests: golden requests to add.
    """

    task: Task
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    requests: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Trained:
    """A finished training: its seed, the network with its best weights, and the scores of that epoch."""

    seed: int
    network: nn.Module
    scores: dict[str, float]


@dataclass(frozen=True)
class EpochLog:
    """The log of one epoch. `rate` is the last learning rate of the fastest group; `seconds` include validation."""

    epoch: int
    stage: str
    loss: float
    rate: float
    seconds: float
    samples_per_second: float
    scores: dict[str, float]


@dataclass(frozen=True)
class EmbeddingTable:
    """The embeddings of the values of one field.

    Attributes:
        field: the column, or `user`, or `item`.
        values: the value of each row of `vectors`; None for rows that stand for no value (missing, or not seen in
            training).
        vectors: float (n, d).
        names: readable names, if the values alone say little (a film's title instead of its id); empty: the values.
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
    """The result of a training run.

    Attributes:
        trained: a network for each seed.
        histories: the epochs of each seed.
        hardware: what it ran on, in words.
        phase_histories: the epochs of each phase that came before, such as a language model.
    """

    trained: tuple[Trained, ...]
    histories: tuple[tuple[EpochLog, ...], ...]
    hardware: str
    phase_histories: tuple[tuple[EpochLog, ...], ...] = ()

    @property
    def minutes(self) -> float:
        """Duration of training and validation, over all phases and seeds."""
        return sum(log.seconds for logs in (*self.phase_histories, *self.histories) for log in logs) / 60
