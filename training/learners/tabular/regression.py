"""How a number is learnt from the other columns of a table, with an interval around it."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tasks._tables import Column
from tasks.contract import Task
from tasks.tabular import Tabular, with_examples
from training.core.errors import CannotTrain
from training.core.results import Evaluation, Trained
from training.data.tables import request_values
from training.engine.inference import iterate_outputs
from training.engine.runtime import Batch, Runtime
from training.learners.tabular.base import INPUTS, RowsLearner
from training.learners.tabular.boosting import Boosted, boosted_numbers
from training.learners.tabular.embedding_transfer import Reuse
from training.learners.tabular.evaluate_regression import RegressionReport
from training.learners.tabular.network import NumberNetwork, ServedNumber, pinball
from training.learners.tabular.residuals import Predicted
from training.learners.tabular.target_scale import error, measures_for, scale_of, stretch_for

_STRATA = 10
_MIN_ROWS = 10
"""Rows to validate: half of them calibrate the interval, and the others tell how often it holds."""


class NumbersLearner(RowsLearner):
    """Learns a number, or its logarithm, within bounds."""

    summary: ClassVar[str] = "what number does this row lead to?"
    hub_tag: ClassVar[str] = "tabular-regression"
    lower_is_better = True

    def _read_target(self, path: Path, frame: pl.DataFrame) -> None:
        measures_for(_values(frame, self.chosen.target), log=False, options=self.chosen.measure)

    def _strata(self, frame: pl.DataFrame) -> NDArray[np.integer]:
        """Tenths of the target, so that both sides of a random split have as many large numbers."""
        values = _values(frame, self.chosen.target)
        edges = np.quantile(values, np.linspace(0, 1, _STRATA + 1)[1:-1])
        return np.searchsorted(edges, values)

    def _task(self, columns: tuple[Column, ...], left_out: tuple[str, ...]) -> Tabular:
        target, options = self.chosen.target, self.chosen
        if self.valid_frame.height < _MIN_ROWS:
            raise CannotTrain(
                f"The split leaves {self.valid_frame.height} rows to validate; a number needs {_MIN_ROWS}."
            )
        numbers = _values(self.train_frame, target)
        self.scale = scale_of(target, numbers, log=options.log_target, bounds=options.bounds)
        every = np.concatenate([numbers, _values(self.valid_frame, target)])
        self.measures = measures_for(every, log=self.scale.log, options=options.measure)
        return Tabular(target, (), columns, left_out, spread=(float(numbers.min()), float(numbers.max())))

    def _targets(self, frame: pl.DataFrame) -> NDArray[np.generic]:
        """As they are learnt, float32; held within the bounds, which validation may go beyond."""
        values = _values(frame, self.chosen.target).clip(self.scale.low, self.scale.high)
        found: NDArray[np.generic] = self.scale.learnt(torch.from_numpy(values)).float().numpy()
        return found

    def _kind_of_target(self) -> str:
        scale, spread = self.scale, self.task.spread or (0.0, 0.0)
        learnt = f"as log({scale.shift:g} + number)" if scale.shift else "by its logarithm" if scale.log else "as it is"
        bounds = f"answers lie between {scale.low:g} and {scale.high:g}"
        return f"a number, {spread[0]:g} to {spread[1]:g}, learnt {learnt}, {bounds}"

    @property
    def truth(self) -> NDArray[np.floating]:
        """The numbers of the validation rows, float64, in their own unit."""
        return _values(self.valid_frame, self.chosen.target)

    def network(self) -> NumberNetwork:
        """A number within bounds, and two distances."""
        return NumberNetwork(self._network_of(1), self.scale, self.samples.targets.double())

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Squared error of the number, in standard deviations, and the quantile loss of the distances around it."""
        number, distances = network(*(batch[name] for name in INPUTS))
        unit = _inner(network).unit
        off = mse_loss(number / unit, batch["target"] / unit)
        outside = 1 - self.task.coverage
        return off + pinball(number.detach() / unit, distances / unit, batch["target"] / unit, outside)

    def _said(self, network: nn.Module, runtime: Runtime) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """The numbers (n,) and the distances (n, 2) of the validation rows, as they are learnt."""
        count = len(self.held_out)
        found = torch.zeros(count, 3, device=runtime.device)
        for batch, (number, distances) in iterate_outputs(network, INPUTS, self.held_out, runtime, batch_size=4096):
            found[batch["index"]] = torch.cat([number[:, None], distances], dim=1).float()
        both = runtime.all_reduce_sum(found).cpu().numpy()
        return both[:, 0], both[:, 1:]

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """The errors on the validation rows, the one that decides first."""
        value = self.scale.in_its_unit(self._said(network, runtime)[0])
        return {measure: error(measure, value, self.truth) for measure in self.measures}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """With the interval stretched so that it holds on half of the validation rows."""
        exact = cast(NumberNetwork, copy.deepcopy(network).float().cpu())
        number, distances = self._said(exact, Runtime(torch.device("cpu")))
        half = self.split.calibration
        truth = self.held_out.targets.numpy()
        stretch = stretch_for(number[half], distances[half], truth[half], self.task.coverage)
        return ServedNumber(exact, self.scale, stretch).eval()

    def predicted(self, served: nn.Module) -> Predicted:
        """What the served network says of the validation rows."""
        found = []
        for _, (value, interval) in iterate_outputs(
            served, INPUTS, self.held_out, Runtime(torch.device("cpu")), batch_size=4096
        ):
            found.append(torch.cat([value[:, None], interval], dim=1))
        value, low, high = torch.cat(found).double().numpy().T
        return Predicted(self.truth, value, low, high, ~self.split.calibration)

    def evaluate(self, trained: Sequence[Trained], served: nn.Module) -> Evaluation:
        """Figures with their spread over the seeds, against gradient boosting, over time and by audit group."""
        said = self.predicted(served)
        first = self.measures[0]
        tables, planes = self.embedding_views(
            trained[0].network,
            Reuse(
                self.samples,
                self.held_out,
                classes=False,
                measure=first.upper(),
                judged=lambda said, rows: error(first, self.scale.bounded(said), self.truth[rows]),
            ),
        )
        importance = self._importance(served, self._loss_of_first, f"{self.measures[0].upper()} added")
        report = RegressionReport(
            measures=self.measures,
            scale=self.scale,
            said=said,
            scores=[each.scores for each in trained],
            boosted=self._boosted([each.seed for each in trained]),
            train_mean=float(self.samples.targets.mean()),
            train_range=cast(tuple[float, float], self.task.spread),
            coverage=self.task.coverage,
            stretch=float(cast(ServedNumber, served).stretch),
            split=self.split,
            times=self._times(),
            audit=[self.valid_frame[name] for name in self.chosen.audit],
        )
        return report.evaluation(tables, (importance, *planes))

    def _boosted(self, seeds: list[int]) -> Boosted:
        inner = self.splitter.inner_holdout(self.train_frame, self._strata(self.train_frame))
        truth = _values(self.train_frame, self.chosen.target)

        def judged(found: NDArray[np.floating], where: NDArray[np.bool_]) -> float:
            return error(self.measures[0], self.scale.bounded(found), truth[where])

        return boosted_numbers(self.task.table, self.samples, self.held_out, inner, judged, seeds)

    def _loss_of_first(self, value: Tensor, count: int) -> float:
        return error(self.measures[0], value[:count].double().numpy(), self.truth[:count])

    def _times(self) -> pl.Series | None:
        """When the validation rows were: the column they were split by, or the first one of dates, if each has one."""
        dates = [column.name for column in self.task.columns if column.kind == "date"]
        names = [name for name in (self.chosen.split_time, *dates) if name and not self.valid_frame[name].null_count()]
        return self.valid_frame[names[0]] if names else None

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """A complete row that was answered well and is neither small nor large, and three at once, one with a hole."""
        said = self.predicted(served)
        order = np.argsort(np.abs(said.value - np.quantile(said.truth, 0.7)), kind="stable")
        inside = (said.low <= said.truth) & (said.truth <= said.high)
        table = request_values(self.valid_frame, self.task.columns)
        rows = [{name: values[i] for name, values in table.items()} for i in order.tolist() if inside[i]]
        complete = [row for row in rows if None not in row.values()]
        if not complete:
            return self.task, [self.task.example()]
        first = complete[0]
        last = list(first)[-1]
        several = [complete[len(complete) // 3], complete[-1], {**first, last: None}]
        return with_examples(self.task, first), [{"rows": [first]}, {"rows": several}]


def _values(frame: pl.DataFrame, target: str) -> NDArray[np.floating]:
    return frame[target].cast(pl.Float64).to_numpy()


def _inner(network: nn.Module) -> NumberNetwork:
    """The network itself, where several processes have wrapped it."""
    return cast(NumberNetwork, getattr(network, "module", network))
