"""Learns a number from the other columns of a table, with an interval around it."""

import copy
from collections.abc import Sequence
from dataclasses import replace
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
from training.core.results import Evaluation, SampleScores, Trained
from training.core.sentences import plain_number
from training.data.tables import request_values
from training.engine.inference import iterate_outputs
from training.engine.runtime import Batch, Runtime
from training.learners.tabular.base import INPUTS, TabularBase
from training.learners.tabular.boosting_baseline import BoostedRegression, boost_regressor
from training.learners.tabular.conformal import fit_conformal_scale, min_calibration_rows
from training.learners.tabular.embedding_transfer import EmbeddingTransfer
from training.learners.tabular.evaluate_regression import RegressionReport
from training.learners.tabular.network import RegressionNetwork, ServedRegression, pinball_loss
from training.learners.tabular.regression_metrics import (
    ROW_ERRORS,
    best_constant,
    compute_error,
    row_errors,
    select_metrics,
)
from training.learners.tabular.residuals import Predictions
from training.learners.tabular.target_scale import fit_target_scale

_BATCH = 4096
_CPU = Runtime(torch.device("cpu"))
_STRATA = 10
_MIN_VALID_ROWS = 10
"""Half of the validation rows calibrate the interval, and the other half measures its coverage."""
_COVERAGE = 0.8


class RegressionLearner(TabularBase):
    """Learns a number, or its logarithm, within bounds."""

    summary: ClassVar[str] = "predict a number from the other columns of a table"
    hub_tag: ClassVar[str] = "tabular-regression"
    lower_is_better = True

    def _read_target(self, path: Path, frame: pl.DataFrame) -> None:
        select_metrics(self._target_values(frame), log=False, preferred=self.options.metric)

    def _strata(self, frame: pl.DataFrame) -> NDArray[np.integer]:
        """Return the tenth of the target that each row is in: a random split keeps them in proportion."""
        values = self._target_values(frame)
        edges = np.quantile(values, np.linspace(0, 1, _STRATA + 1)[1:-1])
        return np.searchsorted(edges, values)

    def _make_task(self, columns: tuple[Column, ...], ignored: tuple[str, ...]) -> Tabular:
        target, options = self.options.target, self.options
        if self.valid_frame.height < _MIN_VALID_ROWS:
            raise CannotTrain(
                f"The split leaves {self.valid_frame.height} validation rows; regression needs {_MIN_VALID_ROWS}."
            )
        train, valid = self._target_values(self.train_frame), self._target_values(self.valid_frame)
        self.scale = fit_target_scale(target, train, log=options.log_target, bounds=options.bounds)
        every = np.concatenate([train, valid])
        self.metrics = select_metrics(every, log=self.scale.log, preferred=options.metric)
        self._balance_calibration()
        spread = float(train.min()), float(train.max())
        optional = self._incomplete_columns(columns)
        return Tabular(target, (), columns, ignored, spread, coverage=_COVERAGE, optional=optional)

    def _balance_calibration(self) -> None:
        """Take every other validation row to calibrate the interval if the chosen half is too small, or the other."""
        calibration, minimum = self.split.calibration, min_calibration_rows(_COVERAGE)
        if min(calibration.sum(), (~calibration).sum()) < minimum:
            alternate = np.arange(len(calibration)) % 2 == 0
            self.split = replace(self.split, calibration=alternate, calibration_rule="every other row")

    def _targets(self, frame: pl.DataFrame) -> NDArray[np.generic]:
        """Return the transformed targets, float32; those of validation rows beyond the bounds are clipped."""
        values = self._target_values(frame).clip(self.scale.low, self.scale.high)
        targets: NDArray[np.generic] = self.scale.transform(torch.from_numpy(values)).float().numpy()
        return targets

    def _describe_target(self) -> str:
        scale, spread = self.scale, self.task.spread or (0.0, 0.0)
        how = f"as log({scale.shift:g} + number)" if scale.shift else "as its logarithm" if scale.log else "as it is"
        bounds = f"predictions lie between {plain_number(scale.low)} and {plain_number(scale.high)}"
        return f"a number, {plain_number(spread[0])} to {plain_number(spread[1])}, learnt {how}, {bounds}"

    def _target_values(self, frame: pl.DataFrame) -> NDArray[np.floating]:
        return frame[self.options.target].cast(pl.Float64).to_numpy()

    @property
    def true_values(self) -> NDArray[np.floating]:
        """The targets of the validation rows, float64, in their own unit."""
        return self._target_values(self.valid_frame)

    def network(self) -> RegressionNetwork:
        """Return a new network of a value within bounds and its interval."""
        return RegressionNetwork(self._tabular_network(1), self.scale, self.samples.targets.double())

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        """Squared error of the value, in standard deviations, plus the quantile loss of the interval around it."""
        value, distances = network(*(batch[name] for name in INPUTS))
        unit = _unwrap(network).unit
        squared = mse_loss(value / unit, batch["target"] / unit)
        outside = 1 - self.task.coverage
        return squared + pinball_loss(value.detach() / unit, distances / unit, batch["target"] / unit, outside)

    def _predict_transformed(
        self, network: nn.Module, runtime: Runtime
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return the transformed values (n,) and distances (n, 2) of the validation rows."""
        outputs = torch.zeros(len(self.held_out), 3, device=runtime.device)
        for batch, (value, distances) in iterate_outputs(network, INPUTS, self.held_out, runtime, batch_size=_BATCH):
            outputs[batch["index"]] = torch.cat([value[:, None], distances], dim=1).float()
        gathered = runtime.all_reduce_sum(outputs).cpu().numpy()
        return gathered[:, 0], gathered[:, 1:]

    def scores(self, network: nn.Module, runtime: Runtime) -> dict[str, float]:
        """Return the error metrics on the validation rows, the main one first."""
        value = self.scale.inverse_transform(self._predict_transformed(network, runtime)[0])
        return {metric: compute_error(metric, value, self.true_values) for metric in self.metrics}

    def to_inference_module(self, network: nn.Module) -> nn.Module:
        """Return the module to export, its interval calibrated on half of the validation rows."""
        exact = cast(RegressionNetwork, copy.deepcopy(network).float().cpu())
        value, distances = self._predict_transformed(exact, _CPU)
        half = self.split.calibration
        targets = self.held_out.targets.numpy()
        factor = fit_conformal_scale(value[half], distances[half], targets[half], self.task.coverage)
        return ServedRegression(exact, self.scale, factor).eval()

    def predict(self, exported: nn.Module) -> Predictions:
        """Return what a module with the outputs of the task predicts for the validation rows."""
        outputs = [
            torch.cat([value[:, None], interval], dim=1)
            for _, (value, interval) in iterate_outputs(exported, INPUTS, self.held_out, _CPU, batch_size=_BATCH)
        ]
        value, low, high = torch.cat(outputs).double().numpy().T
        return Predictions(self.true_values, value, low, high, ~self.split.calibration)

    def sample_scores(self, exported: nn.Module) -> SampleScores:
        """Return the error of each validation row; the main metric is their mean, or its root."""
        return self._error_scores(self.predict(exported).value)

    def _error_scores(self, values: NDArray[np.floating]) -> SampleScores:
        main = self.metrics[0]
        return self._sample_scores(ROW_ERRORS[main], row_errors(main, values, self.true_values), lower_is_better=True)

    def evaluate(self, trained: Sequence[Trained], served: nn.Module, exported: nn.Module) -> Evaluation:
        """Evaluate over the seeds, against gradient boosting, over time and by audit group."""
        main = self.metrics[0]
        transfer = EmbeddingTransfer(
            self.samples,
            self.held_out,
            is_classification=False,
            metric=main.upper(),
            score=lambda values, rows: compute_error(main, self.scale.bounded(values), self.true_values[rows]),
        )
        tables, planes = self.embedding_views(trained[0].network, transfer)
        importance = self._importance(exported, self._main_error, f"{main.upper()} added")
        predictions = self.predict(exported)
        report = RegressionReport(
            metrics=self.metrics,
            scale=self.scale,
            predictions=predictions,
            errors=self._error_scores(predictions.value),
            scores=[run.scores for run in trained],
            boosted=self._boost([run.seed for run in trained]),
            constant=best_constant(main, self._target_values(self.train_frame)),
            train_range=cast(tuple[float, float], self.task.spread),
            target_coverage=self.task.coverage,
            conformal_scale=float(cast(ServedRegression, served).conformal_scale),
            has_epochs=self.settings.epochs > 1,
            split=self.split,
            times=self._times(),
            audit=[self.valid_frame[name] for name in self.options.audit],
        )
        return report.evaluation(tables, (importance, *planes))

    def _main_error(self, value: Tensor, count: int) -> float:
        return compute_error(self.metrics[0], value[:count].double().numpy(), self.true_values[:count])

    def _boost(self, seeds: list[int]) -> BoostedRegression:
        held_out = self.splitter.inner_holdout(self.train_frame, self._strata(self.train_frame))
        true = self._target_values(self.train_frame)

        def loss(values: NDArray[np.floating], rows: NDArray[np.bool_]) -> float:
            return compute_error(self.metrics[0], self.scale.bounded(values), true[rows])

        return boost_regressor(self.task.schema, self.samples, self.held_out, held_out, loss, seeds)

    def _times(self) -> pl.Series | None:
        """Return the times of the validation rows: the column of the split, or the first complete column of dates."""
        dates = [column.name for column in self.task.columns if column.kind == "date"]
        names = [name for name in (self.options.split_time, *dates) if name and not self.valid_frame[name].null_count()]
        return self.valid_frame[names[0]] if names else None

    def golden_requests(self, served: nn.Module) -> tuple[Task, list[dict[str, Any]]]:
        """Return a complete row of a fairly high value that was predicted well, and three rows with a missing value."""
        predictions = self.predict(served)
        distance = np.abs(predictions.value - np.quantile(predictions.true, 0.7))
        order = np.argsort(distance, kind="stable").tolist()
        table = request_values(self.valid_frame, self.task.columns)
        rows = [{name: values[i] for name, values in table.items()} for i in order if predictions.is_covered[i]]
        complete = [row for row in rows if None not in row.values()]
        if not complete:
            return self.task, [self.task.example()]
        first = complete[0]
        incomplete = {**first, list(first)[-1]: None}
        three = [complete[len(complete) // 3], complete[-1], incomplete]
        return with_examples(self.task, first), [{"rows": [first]}, {"rows": three}]


def _unwrap(network: nn.Module) -> RegressionNetwork:
    """Return the network itself if DistributedDataParallel wraps it."""
    return cast(RegressionNetwork, getattr(network, "module", network))
