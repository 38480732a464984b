"""What the learners of tables share, be the target a class or a number: reading, splitting, the network, embeddings."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks._tables import FIRST_KNOWN, Column
from tasks.contract import Arrays
from tasks.tabular import Tabular
from training.core.config import Settings, option
from training.core.errors import CannotTrain
from training.core.results import EmbeddingTable, Figure, Table
from training.core.sources import SourceFetcher
from training.data.table_split import Split, Splitter
from training.data.tables import ColumnKinds, RowSamples, infer_columns, read_table, request_values
from training.engine.learner import Learner, Stage
from training.engine.optim import ParamGroup
from training.evaluation.embeddings import axis_extremes_table
from training.learners.tabular.embedding_transfer import Reuse
from training.learners.tabular.network import NumberNetwork, TabularNetwork
from training.reporting import plots
from training.reporting.embedding_plots import draw_embedding_planes

INPUTS = ("categories", "numbers")


@dataclass(frozen=True)
class Options:
    """What can be chosen for tables."""

    target: str = option("", "the column to predict")
    kind: str = option(
        "auto", "what it is; auto: a number where it holds many different ones", choices=("auto", "class", "number")
    )
    categories: tuple[str, ...] = option((), "columns to read as categories, whatever they look like")
    numbers: tuple[str, ...] = option((), "columns to read as numbers, whatever they look like")
    dates: tuple[str, ...] = option((), "columns that must be dates (2012-09-01, or with T08:00); others are found out")
    date_parts: tuple[str, ...] = option((), "which parts of dates to read: year, month, …; none: those that may help")
    ignore: tuple[str, ...] = option((), "columns not to learn from")
    audit: tuple[str, ...] = option((), "columns by which the figures are also reported in groups")
    header: tuple[str, ...] = option((), "the names of the columns, where a CSV file has no header")
    file: str = option("", "the table's file, where --data is a folder")
    valid_fraction: float = option(0.2, "share of the rows held out for validation")
    split_column: str = option("", "a column that says train or valid of each row")
    split_time: str = option("", "a column of times: the latest rows are held out, by --valid-fraction or --split-from")
    split_from: str = option("", "with --split-time: the first moment that is held out, 2012-09-01 say")
    log_target: str = option(
        "auto", "learn the logarithm of a number; auto: where that is less skewed", choices=("auto", "yes", "no")
    )
    bounds: tuple[str, ...] = option((), "least and largest number ever answered; none: a fifth beyond the data")
    measure: str = option(
        "auto", "of a number's error, to choose the best epoch by", choices=("auto", "rmse", "mae", "rmsle", "rmspe")
    )
    layers: tuple[str, ...] = option(("256", "128"), "sizes of the hidden layers")
    dropout: float = option(0.2, "share of the features that are dropped in training")
    bins: int = option(48, "into how many bins a number is spread")
    value_dropout: float = option(0.01, "share of the values that training replaces by unknown or missing ones")


class RowsLearner(Learner):
    """Learns one column of a table from the others."""

    data_kind: ClassVar[str] = "a CSV or Parquet file"
    # A second thread has so little to do in a network of this size that waiting for it costs more.
    default_settings: ClassVar[Settings] = Settings(
        epochs=20, batch_size=256, rate=3e-3, weight_decay=0.02, label_smoothing=0.0, precision="fp32", threads=1
    )
    default_options: ClassVar[Options] = Options()

    def __init__(self, path: Path, frame: pl.DataFrame, settings: Settings, options: Options) -> None:
        self.trained_with, self.chosen = settings, options
        self.notices: list[str] = []
        self._check(frame)
        self.splitter = Splitter(options.valid_fraction, options.split_column, options.split_time, options.split_from)
        self.splitter.check(frame)
        frame = self._complete(frame)
        self._read_target(path, frame)
        self.split: Split = self.splitter.split(frame, self._strata(frame))
        held, used = self.split.held_out, self.split.used
        if not used.all():
            self.notices.append(f"{int((~used).sum()):,} rows are kept aside, as '{options.split_column}' says.")
        self.train_frame, self.valid_frame = frame.filter(used & ~held), frame.filter(held)
        columns, left_out, notices = infer_columns(self.train_frame, options.target, self._kinds())
        self.notices += notices
        self.task: Tabular = self._task(columns, left_out)
        self.samples: RowSamples = self._rows(self.train_frame)
        self.held_out = self._rows(self.valid_frame)

    @classmethod
    def from_data(cls, data: Path, settings: Settings, options: Options, fetcher: SourceFetcher) -> "RowsLearner":  # noqa: ARG003
        """Reads the table. Raises CannotTrain."""
        return cls(*table_at(data, options), settings, options)

    @abstractmethod
    def _read_target(self, path: Path, frame: pl.DataFrame) -> None:
        """Looks at the target in all rows that have one. Raises CannotTrain where it cannot be learnt."""

    @abstractmethod
    def _strata(self, frame: pl.DataFrame) -> NDArray[np.integer]:
        """For each row what a random split is to keep in proportion."""

    @abstractmethod
    def _task(self, columns: tuple[Column, ...], left_out: tuple[str, ...]) -> Tabular:
        """The task; `self.train_frame` is there."""

    @abstractmethod
    def _targets(self, frame: pl.DataFrame) -> NDArray[np.generic]:
        """What the loss compares with, for each row."""

    @abstractmethod
    def _kind_of_target(self) -> str:
        """What is predicted, in words."""

    def _check(self, frame: pl.DataFrame) -> None:
        options = self.chosen
        if not all(size.isdigit() and int(size) for size in options.layers):
            raise CannotTrain(f"--layers {','.join(options.layers)}: these are to be whole numbers, 256,128 say.")
        for name in options.audit:
            if name not in frame.columns:
                raise CannotTrain(f"--audit {name}: there is no such column.")
        if options.split_column == options.target or options.split_time == options.target:
            raise CannotTrain(f"The target '{options.target}' cannot say how the table is split.")

    def _complete(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Without the rows that have no target, or no place in the split."""
        for name in filter(None, (self.chosen.target, self.chosen.split_column, self.chosen.split_time)):
            here = frame[name].is_not_null()
            if frame[name].dtype.is_float():
                here = here & frame[name].is_finite()
            missing = int((~here).sum())
            if missing:
                self.notices.append(f"{missing} rows without a value of '{name}' are left out.")
                frame = frame.filter(here)
        if not frame.height:
            raise CannotTrain(f"No row has a value of '{self.chosen.target}'.")
        return frame

    def _kinds(self) -> ColumnKinds:
        options = self.chosen
        split = tuple(name for name in (options.split_column,) if name and name not in options.ignore)
        return ColumnKinds(
            options.categories, options.numbers, (*options.ignore, *split), options.dates, options.date_parts
        )

    def _rows(self, frame: pl.DataFrame) -> RowSamples:
        arrays = self.task.preprocess(request_values(frame, self.task.columns)).arrays
        return RowSamples({name: arrays[name] for name in INPUTS}, self._targets(frame))

    def data_summary(self) -> str:
        """Counts, kinds of columns, and what was found on reading."""
        table = self.task.schema
        counts = f"{len(self.samples):,} rows to train on, {len(self.held_out):,} to validate, {self.split.method}"
        kinds = f"{len(table.categories)} columns of categories, {len(table.numbers)} of numbers"
        if dates := [column for column in self.task.columns if column.kind == "date"]:
            parts = ", ".join(f"{column.name} ({', '.join(each.name for each in column.parts)})" for column in dates)
            kinds += f", with the parts of {parts}"
        ignored = f"; not read: {', '.join(self.task.ignored)}" if self.task.ignored else ""
        return "\n".join([f"{counts}; {self._kind_of_target()}; {kinds}{ignored}.", *self.notices])

    def _network_of(self, outputs: int) -> TabularNetwork:
        """Embeddings and a perceptron, with the statistics of the training rows as buffers."""
        options, table = self.chosen, self.task.schema
        return TabularNetwork(
            [len(column.values) for column in table.categories],
            self.samples.inputs["numbers"],
            outputs,
            layers=[int(size) for size in options.layers],
            dropout=options.dropout,
            bins=options.bins,
            value_dropout=options.value_dropout,
            straight=[i for i, column in enumerate(table.numbers) if column.name in self._elapsed()],
        )

    def _elapsed(self) -> set[str]:
        """What counts the time since training began: it goes on past the last value, and no bin would."""
        return {f"{column.name}.elapsed" for column in self.task.columns if column.kind == "date"}

    def stages(self) -> tuple[Stage, ...]:
        """One."""
        return (Stage("all", self.trained_with.epochs, self.trained_with.rate),)

    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """All parameters alike."""
        return [ParamGroup(tuple(network.parameters()))]

    def validation_inputs(self, count: int) -> Arrays:
        """Validation rows, evenly from the first to the last."""
        places = np.linspace(0, len(self.held_out) - 1, min(count, len(self.held_out))).astype(np.int64)
        return {name: tensor[torch.from_numpy(places)].numpy() for name, tensor in self.held_out.inputs.items()}

    def embeddings(self, network: nn.Module) -> Sequence[EmbeddingTable]:
        """Those of each column of categories, parts of dates among them; the first two rows stand for no value."""
        rows = cast(TabularNetwork, network.rows if isinstance(network, NumberNetwork) else network)
        nothing: tuple[str | None, ...] = (None,) * FIRST_KNOWN
        return [
            EmbeddingTable(column.name, (*nothing, *column.values), cast(nn.Embedding, layer).weight.detach().numpy())
            for column, layer in zip(self.task.schema.categories, rows.embeddings, strict=True)
        ]

    def embedding_views(self, network: nn.Module, reuse: Reuse) -> tuple[tuple[Table, ...], tuple[Figure, ...]]:
        """The embeddings by their principal axes, the extreme items named, and in other models."""
        every = self.embeddings(network)
        tables = [table for table in every if len(table.values) >= FIRST_KNOWN + 3][:12]
        if not every:
            return (), ()
        other = reuse.table(every)
        if not tables:
            return (other,), ()
        note = "Each column's categories along the first two principal axes of what was learnt of them."
        return (axis_extremes_table(tables), other), (Figure("Embeddings", draw_embedding_planes(tables), note),)

    def _importance(self, served: nn.Module, loss: Callable[[Tensor, int], float], what: str) -> Figure:
        """How much is lost when a column's values are dealt to other rows; `loss` tells it from the outputs."""
        count = min(len(self.held_out), 20_000)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        inputs = {name: tensor[:count] for name, tensor in self.held_out.inputs.items()}
        table, losses = self.task.schema, dict[str, float]()
        full = loss(_outputs(served, inputs), count)
        names = [column.name for column in table.categories], [column.name for column in table.numbers]
        for kind, columns in zip(INPUTS, names, strict=True):
            for place, column in enumerate(columns):
                batch_keys = {name: tensor.clone() for name, tensor in inputs.items()}
                batch_keys[kind][:, place] = batch_keys[kind][order, place]
                losses[column] = loss(_outputs(served, batch_keys), count) - full
        shown = sorted(losses, key=lambda name: -losses[name])[:25]
        png = plots.draw_bars(shown, [losses[name] for name in shown], "Importance of the columns", what)
        note = f"{what.capitalize()} when a column's values are shuffled among the rows."
        return Figure("What the network reads", png, note)


def _outputs(served: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, served(*(inputs[name] for name in INPUTS))[0])


def table_at(data: Path, options: Options) -> tuple[Path, pl.DataFrame]:
    """The table's file and what it holds. Raises CannotTrain."""
    if not options.target:
        raise CannotTrain("Which column is to be predicted? Name it with --target.")
    if data.is_dir():
        found = sorted(data.rglob(options.file or "*.csv"))
        if len(found) != 1:
            wanted = options.file or "*.csv"
            raise CannotTrain(f"{data} holds {len(found)} files {wanted}: name the table itself with --data.")
        data = found[0]
    return data, read_table(data, header=options.header)
