"""How the classifier of rows is trained: embeddings and a perceptron, with gradient boosting beside it to beat."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tasks._tables import MISSING
from tasks.contract import Arrays, Task
from tasks.manifest import Metric
from tasks.tabular import Tabular, with_examples
from training import calibration, figures, metrics
from training.data import held_out, predicted
from training.errors import CannotTrain
from training.fetch import Fetcher
from training.groups import group_table
from training.learner import Figure, Findings, Learner, Stage, Table, Trained
from training.networks.tabular import ServedTabular, TabularNetwork
from training.runtime import Batch, Runtime
from training.schedule import Group
from training.settings import Settings, option
from training.tables import Kinds, Rows, columns_of, labels_of, plain, read_table, row_groups

_INPUTS = ("categories", "numbers")
_GROUPED = 255
"""How many categories of a column scikit-learn's boosting can keep apart as such."""


@dataclass(frozen=True)
class Options:
    """What can be chosen for tables."""

    target: str = option("", "the column to predict")
    categories: tuple[str, ...] = option((), "columns to read as categories, whatever they look like")
    numbers: tuple[str, ...] = option((), "columns to read as numbers, whatever they look like")
    ignore: tuple[str, ...] = option((), "columns not to learn from")
    audit: tuple[str, ...] = option((), "columns by which the figures are also reported in groups")
    header: tuple[str, ...] = option((), "the names of the columns, where a CSV file has no header")
    file: str = option("", "the table's file, where --data is a folder")
    valid_share: float = option(0.2, "share of the rows held out for validation")
    layers: tuple[str, ...] = option(("256", "128"), "sizes of the hidden layers")
    dropout: float = option(0.2, "share of the features that are dropped in training")
    bins: int = option(48, "into how many bins a number is spread")
    blanked: float = option(0.01, "share of the values that training replaces by unknown or missing ones")


class TabularLearner(Learner):
    """Learns a class from the other columns of a table."""

    summary: ClassVar[str] = "what does this row predict? a class from the columns of a table"
    data_kind: ClassVar[str] = "a CSV or Parquet file"
    # A second thread has so little to do in a network of this size that waiting for it costs more.
    settings: ClassVar[Settings] = Settings(
        epochs=20, batch_size=256, rate=3e-3, weight_decay=0.02, label_smoothing=0.0, precision="fp32", threads=1
    )
    options: ClassVar[Options] = Options()
    hub_tag: ClassVar[str] = "tabular-classification"

    def __init__(self, path: Path, settings: Settings, options: Options) -> None:
        self.trained_with, self.chosen = settings, options
        frame = read_table(path, header=options.header)
        labels = labels_of(frame, options.target, path)
        self.notices: list[str] = []
        unlabelled = frame[options.target].null_count()
        if unlabelled:
            self.notices.append(f"{unlabelled} rows without a value of '{options.target}' are left out.")
            frame = frame.filter(pl.col(options.target).is_not_null())
        self._check_audit(frame)
        targets = _indices(frame[options.target], labels)
        held = np.array(held_out(row_groups(frame), targets.tolist(), options.valid_share))
        self.train_frame, self.valid_frame = frame.filter(~held), frame.filter(held)
        kinds = Kinds(options.categories, options.numbers, options.ignore)
        columns, left_out, notices = columns_of(self.train_frame, options.target, kinds)
        self.notices += notices
        self.task: Tabular = Tabular(options.target, labels, columns, left_out)
        self.samples: Rows = self._rows(self.train_frame, targets[~held])
        self.held_out = self._rows(self.valid_frame, targets[held])
        self.targets = targets[held]

    @classmethod
    def opened(cls, data: Path, settings: Settings, options: Options, fetcher: Fetcher) -> "TabularLearner":  # noqa: ARG003
        """Reads the table. Raises CannotTrain."""
        if not options.target:
            raise CannotTrain("Which column is to be predicted? Name it with --target.")
        if not all(size.isdigit() and int(size) for size in options.layers):
            raise CannotTrain(f"--layers {','.join(options.layers)}: these are to be whole numbers, 256,128 say.")
        if data.is_dir():
            found = sorted(data.rglob(options.file or "*.csv"))
            if len(found) != 1:
                wanted = options.file or "*.csv"
                raise CannotTrain(f"{data} holds {len(found)} files {wanted}: name the table itself with --data.")
            data = found[0]
        return cls(data, settings, options)

    def _check_audit(self, frame: pl.DataFrame) -> None:
        for name in self.chosen.audit:
            if name not in frame.columns:
                raise CannotTrain(f"--audit {name}: there is no such column.")

    def _rows(self, frame: pl.DataFrame, targets: NDArray[np.int64]) -> Rows:
        arrays = self.task.preprocess(plain(frame, self.task.columns)).arrays
        return Rows({name: arrays[name] for name in _INPUTS}, targets)

    def described(self) -> str:
        """Counts, kinds of columns, and what was found on reading."""
        table = self.task.table
        counts = f"{len(self.samples):,} rows to train on, {len(self.held_out):,} to validate, by a hash of the row"
        kinds = f"{len(table.categories)} columns of categories, {len(table.numbers)} of numbers"
        ignored = f"; not read: {', '.join(self.task.ignored)}" if self.task.ignored else ""
        return "\n".join([f"{counts}; {len(self.task.labels)} classes; {kinds}{ignored}.", *self.notices])

    def network(self) -> nn.Module:
        """Embeddings and a perceptron, with the statistics of the training rows as buffers."""
        options = self.chosen
        return TabularNetwork(
            [len(column.values) for column in self.task.table.categories],
            self.samples.inputs["numbers"],
            len(self.task.labels),
            layers=[int(size) for size in options.layers],
            dropout=options.dropout,
            bins=options.bins,
            blanked=options.blanked,
        )

    def stages(self) -> tuple[Stage, ...]:
        """One."""
        return (Stage("whole", self.trained_with.epochs, self.trained_with.rate),)

    def groups(self, network: nn.Module, stage: Stage) -> list[Group]:
        """All parameters alike."""
        return [Group(tuple(network.parameters()))]

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy."""
        logits = network(*(batch[name] for name in _INPUTS))[0]
        return cross_entropy(logits, batch["target"], label_smoothing=self.trained_with.label_smoothing)

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """ROC AUC (with two classes), accuracy and cross entropy on the validation rows."""
        logits = predicted(network, _INPUTS, self.held_out, runtime, batch_size=4096)
        probabilities = logits.softmax(dim=1).numpy()
        accuracy = float((probabilities.argmax(axis=1) == self.targets).mean())
        loss = float(cross_entropy(logits, torch.from_numpy(self.targets)))
        first = {"roc_auc": _auc(probabilities, self.targets)} if len(self.task.labels) == 2 else {}
        return {**first, "accuracy": accuracy, "loss": loss}

    def served(self, network: nn.Module) -> nn.Module:
        """Calibrated on the validation rows."""
        exact = copy.deepcopy(network).float().cpu()
        logits = predicted(exact, _INPUTS, self.held_out, Runtime(torch.device("cpu")), batch_size=4096)
        return ServedTabular(exact, calibration.temperature(logits, torch.from_numpy(self.targets))).eval()

    def findings(self, trained: Sequence[Trained], served: nn.Module) -> Findings:
        """Figures with their spread over the seeds, against gradient boosting, by class and by audit group."""
        temperature = float(cast(ServedTabular, served).temperature)
        targets, labels = self.targets, self.task.labels
        probabilities = predicted(served, _INPUTS, self.held_out, Runtime(torch.device("cpu")), batch_size=4096).numpy()
        before = calibration.at_temperature_one(probabilities, temperature)
        samples = f"{len(targets):,} validation rows"
        seeds = _over_seeds(trained, samples)
        baseline, verdict = self._against_boosting(trained, probabilities)
        classes = metrics.per_class(probabilities, targets, labels)
        by_group = tuple(
            group_table(self.valid_frame[name], probabilities, targets, labels) for name in self.chosen.audit
        )
        matrix = metrics.confusions(probabilities, targets, labels)
        bins = {
            "as trained": calibration.reliability(before, targets),
            "calibrated": calibration.reliability(probabilities, targets),
        }
        importance = self._importance(served, probabilities)
        return Findings(
            metrics=(*metrics.classification_metrics(probabilities, before, targets, samples), *seeds),
            notes=(
                f"Validated on {self.chosen.valid_share:.0%} of the rows of each class, held out by a hash of the row. "
                f"The best epoch was chosen and the temperature ({temperature:.3f}) fitted on them too.",
                verdict,
            ),
            tables=(baseline, classes, *by_group),
            figures=(
                Figure("Confusion matrix", figures.confusion(matrix, labels)),
                Figure("Reliability", figures.reliability(bins), f"Temperature {temperature:.3f}."),
                importance,
            ),
            failures=_failures(matrix, labels, by_group),
        )

    def _against_boosting(self, trained: Sequence[Trained], probabilities: NDArray[np.floating]) -> tuple[Table, str]:
        """A table of the network beside gradient boosting on the same split, and who wins."""
        boosted = self._boosted()
        names = ["accuracy", *(["roc_auc"] if len(self.task.labels) == 2 else []), "cross_entropy"]
        own = metrics.class_figures(probabilities, self.targets)
        theirs = metrics.class_figures(boosted, self.targets)
        rows = [
            ("this network (published)", *(f"{own[name]:.4f}" for name in names)),
            ("gradient boosting", *(f"{theirs[name]:.4f}" for name in names)),
        ]
        if len(trained) > 1:
            spreads = [metrics.spread([each.scores[name] for each in trained]) for name in names[:-1]]
            rows.insert(1, (f"the network, {len(trained)} seeds", *spreads, "–"))
        title = "Against gradient boosting"
        note = (
            "scikit-learn's HistGradientBoostingClassifier on the same columns and rows, stopped early on a tenth of "
            "the training rows; it has not been tuned."
        )
        return Table(title, ("", *(name.replace("_", " ") for name in names)), tuple(rows), note), _verdict(
            own, theirs, names
        )

    def _boosted(self) -> NDArray[np.floating]:
        from sklearn.ensemble import HistGradientBoostingClassifier

        table = self.task.table
        grouped = [len(column.values) + 2 <= _GROUPED for column in table.categories] + [False] * len(table.numbers)
        booster = HistGradientBoostingClassifier(
            max_iter=500,
            learning_rate=0.06,
            early_stopping=True,
            categorical_features=grouped,
            random_state=self.trained_with.seed,
        )
        booster.fit(_joined(self.samples), self.samples.targets.numpy())
        found: NDArray[np.floating] = np.zeros((len(self.held_out), len(self.task.labels)))
        found[:, booster.classes_] = booster.predict_proba(_joined(self.held_out))
        return found

    def _importance(self, served: nn.Module, probabilities: NDArray[np.floating]) -> Figure:
        """How much accuracy is lost when a column's values are dealt to other rows."""
        order = torch.randperm(len(self.targets), generator=torch.Generator().manual_seed(0))
        full = float((probabilities.argmax(axis=1) == self.targets).mean())
        table, losses = self.task.table, dict[str, float]()
        names = [column.name for column in table.categories], [column.name for column in table.numbers]
        for kind, columns in zip(_INPUTS, names, strict=True):
            for place, column in enumerate(columns):
                inputs = {name: tensor.clone() for name, tensor in self.held_out.inputs.items()}
                inputs[kind][:, place] = inputs[kind][order, place]
                with torch.no_grad():
                    said = served(*(inputs[name] for name in _INPUTS))[0].argmax(dim=1).numpy()
                losses[column] = full - float((said == self.targets).mean())
        shown = sorted(losses, key=lambda name: -losses[name])[:25]
        png = figures.bars(shown, [losses[name] for name in shown], "Importance of the columns", "accuracy lost")
        return Figure(
            "What the network reads", png, "Accuracy lost when a column's values are shuffled among the rows."
        )

    def validation(self, count: int) -> Arrays:
        """The first validation rows, in an order that is none: they are held out by a hash."""
        return {name: tensor[:count].numpy() for name, tensor in self.held_out.inputs.items()}

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """A clear and complete row, the clearest of another class, and three rows at once, with a missing value."""
        with torch.no_grad():
            probabilities = served(*(self.held_out.inputs[name] for name in _INPUTS))[0].numpy()
        top = np.sort(probabilities, axis=1)
        right = probabilities.argmax(axis=1) == self.targets
        clear = np.flatnonzero(right & (top[:, -1] - top[:, -2] > 0.3))
        table = plain(self.valid_frame, self.task.columns)
        rows = [{name: values[index] for name, values in table.items()} for index in clear.tolist()]
        complete = [row for row in rows if None not in row.values()]
        if not complete:
            return self.task, [self.task.example()]
        first = complete[0]
        other = [row for row, index in zip(rows, clear, strict=True) if self.targets[index] != self.targets[clear[0]]]
        holed = [row for row in rows if None in row.values()]
        several = [*complete[1:3], *holed[:1]] or [first]
        return with_examples(self.task, first), [{"rows": [first]}, {"rows": other[:1] or [first]}, {"rows": several}]


def _joined(rows: Rows) -> NDArray[np.floating]:
    """Categories as numbers beside the numbers; a missing category as NaN."""
    categories = rows.inputs["categories"].double()
    parts = [categories.masked_fill(categories == MISSING, torch.nan), rows.inputs["numbers"].double()]
    found: NDArray[np.floating] = torch.cat(parts, dim=1).numpy()
    return found


def _verdict(own: dict[str, float], theirs: dict[str, float], names: Sequence[str]) -> str:
    """Which of the two is better, plainly."""
    better = [
        name for name in names if (own[name] < theirs[name] if name == "cross_entropy" else own[name] > theirs[name])
    ]
    figures_ = ", ".join(f"{name.replace('_', ' ')} {own[name]:.4f} against {theirs[name]:.4f}" for name in names)
    if len(better) == len(names):
        return f"The network beats gradient boosting: {figures_}."
    if not better:
        return f"Gradient boosting beats the network: {figures_} (network first). For accuracy alone, use it instead."
    wins = ", ".join(better).replace("_", " ")
    return f"Neither wins: the network is better in {wins} only; {figures_} (network first)."


def _over_seeds(trained: Sequence[Trained], samples: str) -> tuple[Metric, ...]:
    """Mean and standard deviation of the scores of the seeds."""
    found = []
    for name in ("accuracy", "roc_auc"):
        values = [each.scores[name] for each in trained if name in each.scores]
        if len(values) > 1:
            protocol = f"over {len(values)} seeds, best epoch of each, {samples}"
            found.append(Metric(name=f"{name}_mean", value=float(np.mean(values)), protocol=f"mean {protocol}"))
            deviation = float(np.std(values, ddof=1))
            found.append(Metric(name=f"{name}_sd", value=deviation, protocol=f"standard deviation {protocol}"))
    return tuple(found)


def _failures(matrix: NDArray[np.integer], labels: Sequence[str], by_group: Sequence[Table]) -> tuple[str, ...]:
    found = [
        f"{matrix[i, j]} of the {matrix[i].sum()} validation rows of {labels[i]} were taken for {labels[j]}."
        for i in range(len(labels))
        for j in range(len(labels))
        if i != j and matrix[i, j]
    ]
    for table in by_group:
        large = [row for row in table.rows if not row[1].endswith("*")]
        if len(large) > 1:
            worst = min(large, key=lambda row: float(row[2]))
            found.append(
                f"{table.title}, it is right least often for {worst[0]}: {float(worst[2]):.1%} of {worst[1]} rows."
            )
    return tuple(found[:12])


def _indices(column: pl.Series, labels: Sequence[str]) -> NDArray[np.int64]:
    places = {label: i for i, label in enumerate(labels)}
    return np.array([places[value] for value in column.cast(pl.String).to_list()], np.int64)


def _auc(probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(targets, probabilities[:, 1]))
