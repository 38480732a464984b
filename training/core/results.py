"""What training produces: metrics, tables, figures and histories. Values only; they are computed elsewhere."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tasks.contract import Task
from tasks.manifest import Metric
from training.core.sentences import count_of, signed

Vectors = NDArray[np.floating]
_ROUNDING = 1e-6
"""Relative difference between figures that are equal: a model that always gives the constant answer is not worse."""


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
class Comparison:
    """A metric of the model beside that of another predictor on the same samples.

    Attributes:
        other: the other predictor, as in a sentence: `always predicting 'cat'`, `gradient boosting`, `version 3`.
        metric: name of the metric.
        value: the model's.
        other_value: the other's.
        lower_is_better: whether the metric is an error.
        interval: 95 % confidence interval of the model's gain over the other; positive where the model is better.
        count: number of samples, or of groups of samples that belong together.
        samples: what they are, in the plural: `validation images`.
        is_constant: whether the other predictor gives every request the same answer.
    """

    other: str
    metric: str
    value: float
    other_value: float
    lower_is_better: bool
    interval: tuple[float, float]
    count: int
    samples: str
    is_constant: bool = False

    @property
    def gain(self) -> float:
        """How much better the model is; negative if it is worse."""
        gain = self.value - self.other_value
        return -gain if self.lower_is_better else gain

    @property
    def is_worse(self) -> bool:
        """Whether the model's figure is worse, by more than rounding errors."""
        return self.gain < -_ROUNDING * max(abs(self.value), abs(self.other_value))

    @property
    def is_surely_worse(self) -> bool:
        """Whether the whole interval of the gain is below 0."""
        return self.interval[1] < 0

    @property
    def verdict(self) -> str:
        """What follows from the interval: `surely better`, `surely worse`, or `not surely better or worse`."""
        if self.interval[0] > 0:
            return "surely better"
        return "surely worse" if self.is_surely_worse else "not surely better or worse"

    @property
    def counted(self) -> str:
        """The number of samples in words: `341 validation images`."""
        return count_of(self.count, self.samples.removesuffix("s"))

    def sentence(self) -> str:
        """Describe the comparison with its interval and the number of samples."""
        low, high = self.interval
        is_known = math.isfinite(low + high)
        bounds = f"95 % interval {signed(low)} to {signed(high)}" if is_known else "too few for an interval"
        return (
            f"{self.metric} is {self.value:.4f}; {self.other}: {self.other_value:.4f}. Gain {signed(self.gain)} "
            f"({bounds}, {self.counted}): the model is {self.verdict}."
        )


@dataclass(frozen=True)
class SampleScores:
    """A score of each validation sample, whose mean is the metric that models are compared by.

    Attributes:
        metric: name of the metric.
        values: float (n,).
        samples: what they are, in the plural.
        lower_is_better: whether the score is an error.
        groups: (n,) numbers of the groups of samples that belong together (images of a video); None: each is its own.
    """

    metric: str
    values: NDArray[np.floating]
    samples: str
    lower_is_better: bool = False
    groups: NDArray[np.integer] | None = None


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
        comparisons: with baselines; a model that is worse is published only if the user insists.
    """

    metrics: tuple[Metric, ...]
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    failures: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()


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
