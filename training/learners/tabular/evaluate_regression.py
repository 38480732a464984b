"""Evaluation of a regression network: metrics, gradient boosting for comparison, and errors over time and by group."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.manifest import Metric
from training.core.results import Comparison, Evaluation, Figure, SampleScores, Table
from training.core.sentences import plain_number
from training.data.table_split import Split
from training.data.tables import times_as_text
from training.evaluation.calibration import MIN_SAMPLES
from training.evaluation.classification import mean_and_std
from training.learners.tabular import plots
from training.learners.tabular.boosting_baseline import BOOSTING, BoostedRegression, advise
from training.learners.tabular.conformal import likely_coverage
from training.learners.tabular.regression_metrics import DESCRIPTIONS, compare_errors, compute_error, r2, row_errors
from training.learners.tabular.residuals import (
    Predictions,
    describe_worst_group,
    tabulate_column,
    tabulate_over_time,
    tabulate_worst,
)
from training.learners.tabular.target_scale import TargetScale

FloatArray = NDArray[np.floating]

_MAX_DRAWN = 14 * 24
"""Rows of the plot of the last predictions: two weeks of hours."""


@dataclass(frozen=True)
class RegressionReport:
    """Builds the evaluation of a regression network from its predictions on the validation rows.

    Attributes:
        metrics: names of the error metrics; the best epoch was chosen by the first one.
        scale: transforms the target to what is learnt.
        predictions: of the exported network.
        errors: its errors by the first metric (see `row_errors`).
        scores: validation scores of the networks as trained, one dict per seed.
        boosted: predictions of gradient boosting.
        constant: the number that predicts the training targets best by the first metric.
        train_range: smallest and largest training target.
        target_coverage: fraction of true values that the interval is meant to contain.
        conformal_scale: factor by which calibration scaled the interval.
        has_epochs: whether there were several epochs to choose from.
        split: how the rows were held out.
        times: the time of each row, if the data has one.
        audit: columns of the rows by which the errors are grouped.
    """

    metrics: tuple[str, ...]
    scale: TargetScale
    predictions: Predictions
    errors: SampleScores
    scores: Sequence[dict[str, float]]
    boosted: BoostedRegression
    constant: float
    train_range: tuple[float, float]
    target_coverage: float
    conformal_scale: float
    has_epochs: bool
    split: Split
    times: pl.Series | None
    audit: Sequence[pl.Series]

    def evaluation(self, tables: tuple[Table, ...], figures: tuple[Figure, ...]) -> Evaluation:
        """Return the evaluation, with these tables and figures at its end."""
        main = self.metrics[0]
        over_time = tabulate_over_time(self.times, self.predictions, main) if self.times is not None else ()
        groups = tuple(tabulate_column(column, self.predictions, main) for column in self.audit)
        comparisons = self._compare()
        return Evaluation(
            metrics=(*self._published_metrics(), *self._metrics_over_seeds()),
            notes=(self._describe_protocol(), *advise(comparisons), self._describe_interval()),
            tables=(self._tabulate_boosting(), *over_time, *groups, self._worst_rows(), *tables),
            figures=(*self._figures(), *_draw_groups(groups), *figures),
            failures=self._failures((*over_time, *groups)),
            caveats=self._caveats(),
            comparisons=comparisons,
        )

    def _compare(self) -> tuple[Comparison, ...]:
        """Compare with the best constant and with gradient boosting (of the first seed) by the first metric."""
        main, true = self.metrics[0], self.predictions.true
        constant = row_errors(main, np.full(len(true), self.constant), true)
        boosted = row_errors(main, self.scale.bounded(self.boosted.predictions[0]), true)
        always = f"always predicting {plain_number(self.constant, 4)}"
        return (
            compare_errors(main, always, self.errors, constant, is_constant=True),
            compare_errors(main, BOOSTING, self.errors, boosted),
        )

    @property
    def _samples(self) -> str:
        return f"{len(self.predictions.true):,} validation rows"

    def _error(self, metric: str) -> float:
        return compute_error(metric, self.predictions.value, self.predictions.true)

    def _published_metrics(self) -> tuple[Metric, ...]:
        predictions, measured = self.predictions, int(self.predictions.measures_coverage.sum())
        metrics = [
            Metric(name=name, value=self._error(name), protocol=f"{DESCRIPTIONS[name]}, {self._samples}")
            for name in self.metrics
        ]
        explained = r2(predictions.value, predictions.true)
        metrics.append(Metric(name="r2", value=explained, protocol=f"{DESCRIPTIONS['r2']}, {self._samples}"))
        protocol = (
            f"fraction of {measured:,} validation rows, not used to calibrate it, in the interval that is meant to "
            f"contain {self.target_coverage:.0%}"
        )
        if measured:
            metrics.append(Metric(name="coverage", value=predictions.coverage(), protocol=protocol))
        width = float(np.median(predictions.high - predictions.low))
        metrics.append(Metric(name="interval_width", value=width, protocol=f"median, {self._samples}"))
        return tuple(metrics)

    def _errors(self, metric: str) -> tuple[list[float], list[float]]:
        """Return the errors of the networks (the exported one first) and of gradient boosting, one per seed."""
        true = self.predictions.true
        boosted = [compute_error(metric, self.scale.bounded(value), true) for value in self.boosted.predictions]
        return [self._error(metric), *(scores[metric] for scores in self.scores[1:])], boosted

    def _metrics_over_seeds(self) -> tuple[Metric, ...]:
        main = self.metrics[0]
        network, boosted = self._errors(main)
        seeds = len(network)
        over = f"over {seeds} seeds, {self._samples}" if seeds > 1 else self._samples
        mean = "mean " if seeds > 1 else ""
        metrics = []
        if seeds > 1:
            protocol = f"{over}, best epoch of each"
            deviation = float(np.std(network, ddof=1))
            metrics += [
                Metric(name=f"{main}_mean", value=float(np.mean(network)), protocol=f"mean {protocol}"),
                Metric(name=f"{main}_sd", value=deviation, protocol=f"standard deviation {protocol}"),
            ]
        protocol = f"{mean}of gradient boosting, {over}"
        metrics.append(Metric(name=f"boosting_{main}", value=float(np.mean(boosted)), protocol=protocol))
        ratio = float(np.mean(network) / np.mean(boosted))
        protocol = f"{main} of the network over that of gradient boosting, {mean}{over}; below 1 the network is better"
        metrics.append(Metric(name=f"{main}_to_boosting", value=ratio, protocol=protocol))
        return tuple(metrics)

    def _tabulate_boosting(self) -> Table:
        """Tabulate the network beside gradient boosting and a constant prediction."""
        names, true = self.metrics, self.predictions.true
        errors = {name: self._errors(name) for name in names}
        constant = np.full(len(true), self.constant)
        best = f"the best constant by {names[0].upper()} on the training rows"
        always = f"always {plain_number(self.constant, 4)}, {best}"
        rows = [
            ("this network (published)", *(f"{self._error(name):.4f}" for name in names)),
            (_with_seeds(BOOSTING, len(self.boosted.predictions)), *(mean_and_std(errors[name][1]) for name in names)),
            (always, *(f"{compute_error(name, constant, true):.4f}" for name in names)),
        ]
        if len(self.scores) > 1:
            networks = _with_seeds("the network", len(self.scores))
            rows.insert(1, (networks, *(mean_and_std(errors[name][0]) for name in names)))
        header = ("", *(name.upper() for name in names))
        return Table("Comparison with gradient boosting", header, tuple(rows), f"{self.boosted.description}.")

    def _describe_protocol(self) -> str:
        chosen = f"The best epoch was chosen by {self.metrics[0].upper()} on them; the" if self.has_epochs else "The"
        return (
            f"Validated on {len(self.predictions.true):,} rows held out {self.split.method}. {chosen} settings of "
            "gradient boosting were chosen on training rows only."
        )

    def _describe_interval(self) -> str:
        measured = self.predictions.measures_coverage
        covered = int((measured & self.predictions.is_covered).sum())
        return (
            f"The {self.target_coverage:.0%} interval is predicted by the network and scaled by "
            f"{self.conformal_scale:.2f}, by conformal calibration on {self._calibration_rows:,} validation rows "
            f"({self.split.calibration_rule}). It contains {covered:,} of the {measured.sum():,} other true values."
        )

    @property
    def _calibration_rows(self) -> int:
        return int((~self.predictions.measures_coverage).sum())

    def _worst_rows(self) -> Table:
        names = [f"validation row {i}" for i in range(len(self.predictions.true))]
        times = names if self.times is None else times_as_text(self.times)
        return tabulate_worst(times, self.predictions, np.abs(self._residuals()))

    def _residuals(self) -> FloatArray:
        """Return predicted minus true values, transformed: with the logarithm, nearly a relative error."""
        scale, predictions = self.scale, self.predictions
        if not scale.log:
            return predictions.value - predictions.true
        true = np.maximum(predictions.true, scale.low)
        residuals: FloatArray = np.log(predictions.value + scale.shift) - np.log(true + scale.shift)
        return residuals

    def _figures(self) -> tuple[Figure, ...]:
        predictions, log, residuals = self.predictions, self.scale.log, self._residuals()
        note = "In logarithms: 0.1 is about 10 % too high." if log else "In the target's unit."
        figures = [
            Figure(
                "Predicted and true values",
                plots.draw_predicted_and_true(predictions.true, predictions.value, log=log),
            ),
            Figure("Errors", plots.draw_residual_histogram(residuals), note),
        ]
        if self.times is not None:
            times = self.times.to_list()
            png = plots.draw_residuals_over_time(times, residuals, "Errors over time")
            figures.append(Figure("Errors over time", png, note))
            last = np.argsort(self.times.to_numpy(), kind="stable")[-_MAX_DRAWN:]
            png = plots.draw_predictions_over_time(
                [times[i] for i in last],
                predictions.true[last],
                predictions.value[last],
                predictions.low[last],
                predictions.high[last],
                "The last validation rows",
            )
            figures.append(Figure("The last validation rows", png, "With the interval."))
        return tuple(figures)

    def _failures(self, tables: Sequence[Table]) -> tuple[str, ...]:
        """Return sentences on the bias, if it is more than chance, the worst groups, and values beyond the interval."""
        return (
            *self._describe_bias(),
            *(sentence for table in tables if (sentence := describe_worst_group(table))),
            *self._describe_misses(),
        )

    def _describe_bias(self) -> tuple[str, ...]:
        true = self.predictions.true
        errors = self.predictions.value - true
        bias, deviation = float(errors.mean()), float(true.std())
        if abs(bias) <= 1.96 * float(errors.std()) / math.sqrt(len(errors)):
            return ()
        relative = f", {abs(bias) / deviation:.1%} of the standard deviation of the true values" if deviation else ""
        return (
            f"Predictions are {plain_number(abs(bias), 3)} too {'high' if bias > 0 else 'low'} on average{relative}.",
        )

    def _describe_misses(self) -> tuple[str, ...]:
        rows = self.predictions.measures_coverage
        true, count = self.predictions.true, int(rows.sum())
        below, above = (
            int(misses[rows].sum()) for misses in (true < self.predictions.low, true > self.predictions.high)
        )
        if not below + above:
            return ()
        return (f"Of {count:,} true values, {below:,} lie below their interval and {above:,} above.",)

    def _caveats(self) -> tuple[str, ...]:
        scale = self.scale
        smallest, largest = self.train_range
        bounds = (
            f"Training targets range from {plain_number(smallest)} to {plain_number(largest)}; every prediction lies "
            f"between {plain_number(scale.low)} and {plain_number(scale.high)}, whatever the input."
        )
        logarithm = (
            "The network predicts the logarithm: errors are relative to the true value, and a prediction is close to "
            "the median of the possible values rather than to their mean, which is larger."
        )
        return (bounds, *((logarithm,) if scale.log else ()), *self._describe_few_rows())

    def _describe_few_rows(self) -> tuple[str, ...]:
        count = self._calibration_rows
        if count >= MIN_SAMPLES:
            return ()
        low, high = likely_coverage(count, self.target_coverage)
        return (
            f"The interval was calibrated on only {count} rows: it is meant to contain {self.target_coverage:.0%} of "
            f"new values, and contains between {low:.0%} and {high:.0%} of them (with a probability of 95 %).",
        )


def _draw_groups(tables: Sequence[Table]) -> tuple[Figure, ...]:
    return tuple(
        Figure(
            table.title,
            plots.draw_group_errors(table.title, [row[0] for row in table.rows], [float(row[3]) for row in table.rows]),
        )
        for table in tables
    )


def _with_seeds(name: str, seeds: int) -> str:
    return f"{name}, {seeds} seeds" if seeds > 1 else name
