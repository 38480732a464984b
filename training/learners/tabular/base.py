"""Shared by classification and regression on tables: options, reading, splitting, the network, embeddings."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks._tables import FIRST_KNOWN, Column
from tasks.contract import Arrays, Run, Task
from tasks.tabular import Tabular
from training.core.config import Settings, option
from training.core.errors import CannotTrain
from training.core.results import EmbeddingTable, Figure, Remeasured, SampleScores, Table
from training.core.sources import SourceFetcher
from training.data.column_types import ColumnKinds, TypeRules
from training.data.delimited import CsvFormat, CsvOptions
from training.data.table_files import LoadedTable, read_table
from training.data.table_split import Split, Splitter
from training.data.tables import RowSamples, infer_columns, request_values
from training.engine.learner import Learner, Stage
from training.engine.optim import ParamGroup
from training.evaluation.embeddings import axis_extremes_table
from training.learners.tabular.embedding_transfer import EmbeddingTransfer
from training.learners.tabular.network import RegressionNetwork, TabularNetwork
from training.reporting import plots
from training.reporting.embedding_plots import draw_embedding_planes

INPUTS = ("categories", "numbers")
_TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")


@dataclass(frozen=True)
class Options(CsvOptions):
    """Options of the table learners."""

    target: str = option("", "the column to predict")
    kind: str = option(
        "auto",
        "kind of the target; auto = number if it has many distinct numeric values",
        choices=("auto", "class", "number"),
    )
    categories: tuple[str, ...] = option((), "columns to read as categories")
    numbers: tuple[str, ...] = option((), "columns to read as numbers")
    dates: tuple[str, ...] = option((), "columns that must be dates; others are detected")
    dayfirst: bool | None = option(None, "whether 1/2/2020 is the first of February, where no value shows it")
    date_parts: tuple[str, ...] = option((), "parts of dates to read: year, month, …; empty = chosen automatically")
    ignore: tuple[str, ...] = option((), "columns to exclude from the inputs")
    audit: tuple[str, ...] = option((), "columns by which the metrics are also reported")
    header: tuple[str, ...] = option((), "names of the columns, for a CSV file without a header")
    decimal: str = option("", "decimal sign, a point or a comma; empty = recognised")
    file: str = option("", "file name of the table, if --data is a folder")
    valid_fraction: float = option(0.2, "fraction of the rows held out for validation", above=0, below=1)
    split_column: str = option("", "column with the split of each row, train or valid")
    split_time: str = option("", "column of times: hold out the latest rows, by --valid-fraction or --split-from")
    split_from: str = option("", "with --split-time: first time that is held out, such as 2012-09-01")
    log_target: str = option(
        "auto", "predict the logarithm of a numeric target; auto = if it is less skewed", choices=("auto", "yes", "no")
    )
    bounds: tuple[str, ...] = option(
        (), "bounds of predicted numbers, LOW,HIGH; empty = the range of the data, extended by a fifth"
    )
    metric: str = option(
        "auto",
        "metric that selects the best epoch for a numeric target",
        choices=("auto", "rmse", "mae", "rmsle", "rmspe"),
    )
    layers: tuple[str, ...] = option(("256", "128"), "sizes of the hidden layers")
    dropout: float = option(0.2, "dropout after each hidden layer", at_least=0, below=1)
    bins: int = option(48, "bins of each numeric column in its piecewise-linear encoding", at_least=1)
    value_dropout: float = option(
        0.01, "fraction of the input values replaced by unknown or missing ones in training", at_least=0, below=1
    )


class TabularBase(Learner):
    """Learns one column of a table from the others; subclasses say what kind of target it is."""

    data_kind: ClassVar[str] = "a CSV or Parquet file"
    # In a network of this size a second thread costs more in waiting than it saves.
    default_settings: ClassVar[Settings] = Settings(
        epochs=20, batch_size=256, rate=3e-3, weight_decay=0.02, label_smoothing=0.0, precision="fp32", threads=1
    )
    default_options: ClassVar[Options] = Options()

    def __init__(self, path: Path, table: LoadedTable, settings: Settings, options: Options) -> None:
        self.settings, self.options = settings, options
        frame = table.frame
        self.warnings: list[str] = list(table.warnings)
        self._check_options(frame)
        self.splitter = Splitter(
            options.valid_fraction, options.split_column, options.split_time, options.split_from, options.dayfirst
        )
        self.splitter.check(frame)
        frame = self._drop_incomplete(frame)
        self._read_target(path, frame)
        self.split: Split = self.splitter.split(frame, self._strata(frame))
        held, used = self.split.held_out, self.split.used
        if not used.all():
            self.warnings.append(
                f"{int((~used).sum()):,} rows belong to neither split, by the column '{options.split_column}'."
            )
        self.train_frame, self.valid_frame = frame.filter(used & ~held), frame.filter(held)
        columns, ignored, warnings = infer_columns(
            self.train_frame, options.target, column_kinds(options), table.missing_texts, table.warnings
        )
        # What is left out is not one of categories either.
        outdated = {table.category_notes.get(name) for name in ignored}
        self.warnings = [*(sentence for sentence in self.warnings if sentence not in outdated), *warnings]
        self.task: Tabular = self._make_task(columns, ignored)
        self.samples: RowSamples = self._make_samples(self.train_frame)
        self.held_out = self._make_samples(self.valid_frame)

    @classmethod
    def from_data(cls, data: Path, settings: Settings, options: Options, fetcher: SourceFetcher) -> "TabularBase":  # noqa: ARG003
        """Read the table. Raises CannotTrain."""
        return cls(*read_target_table(data, options), settings, options)

    @abstractmethod
    def _read_target(self, path: Path, frame: pl.DataFrame) -> None:
        """Check the target in all rows that have one. Raises CannotTrain if it cannot be learnt."""

    @abstractmethod
    def _strata(self, frame: pl.DataFrame) -> NDArray[np.integer]:
        """Return the stratum of each row; a random split keeps the strata in proportion."""

    @abstractmethod
    def _make_task(self, columns: tuple[Column, ...], ignored: tuple[str, ...]) -> Tabular:
        """Return the task. `train_frame` and `valid_frame` are set by then. Raises CannotTrain."""

    @abstractmethod
    def _targets(self, frame: pl.DataFrame) -> NDArray[np.generic]:
        """Return the target of each row as the loss needs it."""

    @abstractmethod
    def _describe_target(self) -> str:
        """Describe what is predicted, for the summary of the data."""

    def _check_options(self, frame: pl.DataFrame) -> None:
        options = self.options
        if not all(size.isdigit() and int(size) for size in options.layers):
            raise CannotTrain(f"--layers {','.join(options.layers)}: give whole numbers above 0, such as 256,128.")
        for name in options.audit:
            if name not in frame.columns:
                raise CannotTrain(f"--audit {name}: there is no such column.")
        if options.split_column == options.target or options.split_time == options.target:
            raise CannotTrain(f"The table cannot be split by its target '{options.target}'.")

    def _drop_incomplete(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Drop the rows without a target, or without a value of the column that splits the table."""
        for name in filter(None, (self.options.target, self.options.split_column, self.options.split_time)):
            present = frame[name].is_not_null()
            if frame[name].dtype.is_float():
                present = present & frame[name].is_finite()
            missing = int((~present).sum())
            if missing:
                were = "was" if missing == 1 else "were"
                self.warnings.append(f"{_counted(missing, 'row')} without a value of '{name}' {were} left out.")
                frame = frame.filter(present)
        if not frame.height:
            raise CannotTrain(f"No row has a value of '{self.options.target}'.")
        return frame

    def _make_samples(self, frame: pl.DataFrame) -> RowSamples:
        arrays = self.task.preprocess(request_values(frame, self.task.columns)).arrays
        return RowSamples({name: arrays[name] for name in INPUTS}, self._targets(frame))

    def _incomplete_columns(self, columns: tuple[Column, ...]) -> tuple[str, ...]:
        """Return the names of the columns that have missing values in the training rows."""
        return tuple(name for name, values in request_values(self.train_frame, columns).items() if None in values)

    def remeasure(self, task: Task, run: Run, goldens: Sequence[dict[str, Any]]) -> Remeasured:
        """Find the columns that had missing values in training; a golden request omits them."""
        published = cast(Tabular, task)
        values = request_values(self.train_frame, published.columns)
        missing = {name: column.count(None) for name, column in values.items() if None in column}
        rows = tuple((name, f"{count:,}", f"{count / len(self.samples):.1%}") for name, count in missing.items())
        table = Table("Columns that may be omitted", ("column", "missing", "fraction"), rows, self._optional_note())
        new = replace(published, optional=tuple(missing))
        return Remeasured(new, tables=(table,), requests=_omit_missing(goldens, new.optional))

    def _optional_note(self) -> str:
        return (
            f"These columns have missing values in the {len(self.samples):,} training rows. A row may omit them, which "
            "counts as missing; all others must be sent."
        )

    def data_summary(self) -> str:
        """Describe the rows, the target and the columns, with warnings from reading the table."""
        table = self.task.schema
        counts = f"{len(self.samples):,} rows to train on, {len(self.held_out):,} to validate, {self.split.method}"
        kinds = f"{_counted(len(table.categories), 'column')} of categories, {len(table.numbers)} of numbers"
        if dates := [column for column in self.task.columns if column.kind == "date"]:
            parts = ", ".join(f"{column.name} ({', '.join(part.name for part in column.parts)})" for column in dates)
            kinds += f", with the parts of {parts}"
        ignored = f"; not read: {', '.join(self.task.ignored)}" if self.task.ignored else ""
        return "\n".join([f"{counts}; {self._describe_target()}; {kinds}{ignored}.", *self.warnings])

    def _tabular_network(self, outputs: int) -> TabularNetwork:
        """Return a new network with the statistics of the training rows as buffers."""
        options, table = self.options, self.task.schema
        return TabularNetwork(
            [len(column.values) for column in table.categories],
            self.samples.inputs["numbers"],
            outputs,
            layers=[int(size) for size in options.layers],
            dropout=options.dropout,
            bins=options.bins,
            value_dropout=options.value_dropout,
            unbinned=[i for i, column in enumerate(table.numbers) if column.name in self._elapsed_times()],
        )

    def _elapsed_times(self) -> set[str]:
        """Return the columns of time since training began: they go on beyond the training data, where no bin is."""
        return {f"{column.name}.elapsed" for column in self.task.columns if column.kind == "date"}

    def stages(self) -> tuple[Stage, ...]:
        """Return the only stage."""
        return (Stage("all", self.settings.epochs, self.settings.rate),)

    def param_groups(self, network: nn.Module, stage: Stage) -> list[ParamGroup]:
        """Return all parameters as one group."""
        return [ParamGroup(tuple(network.parameters()))]

    def validation_inputs(self, count: int) -> Arrays:
        """Return up to `count` validation rows, evenly spread from the first to the last."""
        rows = np.linspace(0, len(self.held_out) - 1, min(count, len(self.held_out))).astype(np.int64)
        return {name: tensor[torch.from_numpy(rows)].numpy() for name, tensor in self.held_out.inputs.items()}

    def embeddings(self, network: nn.Module) -> Sequence[EmbeddingTable]:
        """Return the embeddings of each categorical column and date part; the first two rows stand for no value."""
        backbone = cast(TabularNetwork, network.backbone if isinstance(network, RegressionNetwork) else network)
        no_value: tuple[str | None, ...] = (None,) * FIRST_KNOWN
        return [
            EmbeddingTable(column.name, (*no_value, *column.values), cast(nn.Embedding, layer).weight.detach().numpy())
            for column, layer in zip(self.task.schema.categories, backbone.embeddings, strict=True)
        ]

    def embedding_views(
        self, network: nn.Module, transfer: EmbeddingTransfer
    ) -> tuple[tuple[Table, ...], tuple[Figure, ...]]:
        """Return tables and a figure of the embeddings: extreme values, use in other models, principal axes."""
        embeddings = self.embeddings(network)
        if not embeddings:
            return (), ()
        comparison = transfer.compare(embeddings)
        shown = [table for table in embeddings if len(table.values) >= FIRST_KNOWN + 3][:12]
        if not shown:
            return (comparison,), ()
        note = "The embeddings of each column's categories along their first two principal axes."
        return (axis_extremes_table(shown), comparison), (Figure("Embeddings", draw_embedding_planes(shown), note),)

    def is_comparable(self, previous: Task) -> bool:
        """Whether that task predicts the same target from the same columns, encoded in the same way."""
        if not super().is_comparable(previous):
            return False
        task, other = self.task, cast(Tabular, previous)
        return (other.target, other.labels, _encoding(other)) == (task.target, task.labels, _encoding(task))

    def _sample_scores(self, metric: str, values: NDArray[np.floating], *, lower_is_better: bool) -> SampleScores:
        """Return scores of the validation rows; rows of one day are no independent samples if rows are split by time.

        If the times are numbers, rows of the same time belong together.
        """
        if not self.options.split_time:
            return SampleScores(metric, values, "validation rows", lower_is_better)
        times = self.valid_frame[self.options.split_time]
        if times.dtype.is_temporal():
            times = times.cast(pl.Date)
        what = "days of the validation rows" if times.dtype.is_temporal() else "times of the validation rows"
        groups = times.rank("dense").cast(pl.Int64).to_numpy()
        return SampleScores(metric, values, what, lower_is_better, groups)

    def _importance(self, exported: nn.Module, loss: Callable[[Tensor, int], float], what: str) -> Figure:
        """Draw the permutation feature importance.

        `loss` computes a loss from outputs and their count; `what` names its increase.
        """
        count = min(len(self.held_out), 20_000)
        permutation = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        inputs = {name: tensor[:count] for name, tensor in self.held_out.inputs.items()}
        table, increases = self.task.schema, dict[str, float]()
        unpermuted = loss(_run(exported, inputs), count)
        names = [column.name for column in table.categories], [column.name for column in table.numbers]
        for kind, columns in zip(INPUTS, names, strict=True):
            for index, column in enumerate(columns):
                permuted = {name: tensor.clone() for name, tensor in inputs.items()}
                permuted[kind][:, index] = permuted[kind][permutation, index]
                increases[column] = loss(_run(exported, permuted), count) - unpermuted
        shown = sorted(increases, key=lambda name: -increases[name])[:25]
        png = plots.draw_bars(shown, [increases[name] for name in shown], "Importance of the columns", what)
        note = f"Permutation feature importance: {what} when a column's values are shuffled among the rows."
        return Figure("Feature importance", png, note)


def _encoding(task: Tabular) -> tuple[Any, ...]:
    """Return what the inputs of a network for tables depend on; ranges and examples only describe the columns."""
    return (
        [(column.name, column.values) for column in task.schema.categories],
        [column.name for column in task.schema.numbers],
        [(column.name, column.first) for column in task.columns if column.kind == "date"],
    )


def _run(module: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, module(*(inputs[name] for name in INPUTS))[0])


def _omit_missing(goldens: Sequence[dict[str, Any]], optional: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Return a request with the first golden row that lacks the value of an optional column, which it omits."""
    for row in (row for golden in goldens for row in golden["rows"]):
        kept = {name: value for name, value in row.items() if value is not None or name not in optional}
        if len(kept) < len(row):
            return ({"rows": [kept]},)
    return ()


def column_kinds(options: Options) -> ColumnKinds:
    """Return what the user says about the columns; the one that splits the table is no input."""
    split = tuple(name for name in (options.split_column,) if name and name not in options.ignore)
    return ColumnKinds(
        options.categories, options.numbers, (*options.ignore, *split), options.dates, options.date_parts
    )


def read_target_table(data: Path, options: Options) -> tuple[Path, LoadedTable]:
    """Find and read the table; return its file too. Raises CannotTrain."""
    if not options.target:
        raise CannotTrain("Specify the column to predict with --target.")
    path = _find_file(data, options.file) if data.is_dir() else data
    form = CsvFormat(options.separator, options.encoding, options.header)
    needed = tuple(filter(None, (options.split_time,)))
    rules = TypeRules(column_kinds(options), options.target, options.kind, needed, options.decimal, options.dayfirst)
    return path, read_table(path, form, rules)


def _find_file(folder: Path, pattern: str) -> Path:
    if pattern:
        files = sorted(folder.rglob(pattern))
    else:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _TABLE_SUFFIXES)
        # A table beside others, in text files or Parquet, is most often the CSV file.
        files = [path for path in files if path.suffix.lower() == ".csv"] or files
    if len(files) != 1:
        what = pattern or f"tables ({', '.join(_TABLE_SUFFIXES)})"
        raise CannotTrain(f"{folder} contains {len(files)} files {what}; specify one of them with --data.")
    return files[0]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
