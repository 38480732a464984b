"""What is known of a network of numbers: its figures beside those of gradient boosting, over time and by group."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks.manifest import Metric
from training.core.results import Evaluation, Figure, Table
from training.data.table_split import Split
from training.data.tables import times_as_text
from training.evaluation.classification import mean_and_std
from training.learners.tabular import plots
from training.learners.tabular.boosting import Boosted
from training.learners.tabular.network import Scale
from training.learners.tabular.residuals import Predicted, by_column, by_time, worst, worst_group
from training.learners.tabular.target_scale import WORDS, error, explained

Numbers = NDArray[np.floating]

_SHOWN = {"rmsle": "RMSLE", "rmspe": "RMSPE", "rmse": "RMSE", "mae": "MAE"}
_DRAW = 14 * 24


@dataclass(frozen=True)
class RegressionReport:
    """Builds the evaluation of a regression network from its predictions on the validation rows.

    Attributes:
        measures: names of the error metrics; the first one chose the best epoch.
        scale: how the target is learnt, and its bounds.
        said: predictions of the published network.
        scores: validation scores of the networks, one dict per seed.
        boosted: predictions of gradient boosting.
        train_mean: mean of the training targets, as they are learnt.
        train_range: smallest and largest training target.
        coverage: fraction of targets that the interval is meant to contain.
        stretch: factor by which calibration scaled the interval.
        split: how the rows were held out.
        times: the time of each row, where the data has one.
        audit: columns of the rows by which the errors are grouped.
    """

    measures: tuple[str, ...]
    scale: Scale
    said: Predicted
    scores: Sequence[dict[str, float]]
    boosted: Boosted
    train_mean: float
    train_range: tuple[float, float]
    coverage: float
    stretch: float
    split: Split
    times: pl.Series | None
    audit: Sequence[pl.Series]

    def evaluation(self, tables: tuple[Table, ...], figures: tuple[Figure, ...]) -> Evaluation:
        """Return the evaluation, with the learner's own tables and figures at its end."""
        said, first = self.said, self.measures[0]
        over_time = by_time(self.times, said, first) if self.times is not None else ()
        groups = tuple(by_column(column, said, first) for column in self.audit)
        baseline, verdict = self._against_boosting()
        return Evaluation(
            metrics=(*self._metrics(), *self._over_seeds()),
            notes=(self._protocol(), verdict, self._on_the_interval()),
            tables=(baseline, *over_time, *groups, self._worst(), *tables),
            figures=(*self._figures(), *_drawn(groups), *figures),
            failures=self._failures((*over_time, *groups)),
            caveats=self._caveats(),
        )

    @property
    def _samples(self) -> str:
        return f"{len(self.said.truth):,} validation rows"

    def _metrics(self) -> tuple[Metric, ...]:
        said, measured = self.said, int(self.said.measured.sum())
        found = [
            Metric(name=name, value=error(name, said.value, said.truth), protocol=f"{WORDS[name]}, {self._samples}")
            for name in self.measures
        ]
        r2 = explained(said.value, said.truth)
        found.append(Metric(name="r2", value=r2, protocol=f"{WORDS['r2']}, {self._samples}"))
        share = f"{self.coverage:.0%}"
        protocol = (
            f"share of {measured:,} validation rows that did not calibrate it in the interval meant to hold {share}"
        )
        found.append(Metric(name="coverage", value=said.covered(), protocol=protocol))
        width = float(np.median(said.high - said.low))
        found.append(Metric(name="interval_width", value=width, protocol=f"median, {self._samples}"))
        return tuple(found)

    def _errors(self, measure: str) -> tuple[list[float], list[float]]:
        """Of the network and of boosting, one a seed."""
        theirs = [error(measure, self.scale.bounded(found), self.said.truth) for found in self.boosted.found]
        return [scores[measure] for scores in self.scores], theirs

    def _over_seeds(self) -> tuple[Metric, ...]:
        first = self.measures[0]
        own, theirs = self._errors(first)
        count = len(own)
        over = f"over {count} seeds, {self._samples}" if count > 1 else self._samples
        found = []
        if count > 1:
            best = f"{over}, best epoch of each"
            found.append(Metric(name=f"{first}_mean", value=float(np.mean(own)), protocol=f"mean {best}"))
            deviation = float(np.std(own, ddof=1))
            found.append(Metric(name=f"{first}_sd", value=deviation, protocol=f"standard deviation {best}"))
        ratio = float(np.mean(own) / np.mean(theirs))
        mean = "mean " if count > 1 else ""
        theirs_words = f"{mean}of gradient boosting, {over}"
        found.append(Metric(name=f"boosting_{first}", value=float(np.mean(theirs)), protocol=theirs_words))
        ratio_words = (
            f"{first} of the network over that of gradient boosting, {mean}{over}; below 1 the network is better"
        )
        found.append(Metric(name=f"{first}_to_boosting", value=ratio, protocol=ratio_words))
        return tuple(found)

    def _against_boosting(self) -> tuple[Table, str]:
        """The network beside boosting and beside a guess that knows no column, and who wins."""
        names = self.measures
        each = {name: self._errors(name) for name in names}
        guess = self.scale.bounded(np.full(len(self.said.truth), self.train_mean))
        rows = [
            ("this network (published)", *(f"{error(name, self.said.value, self.said.truth):.4f}" for name in names)),
            (f"gradient boosting, {len(self.boosted.found)} seeds", *(mean_and_std(each[name][1]) for name in names)),
            ("always the training rows' mean", *(f"{error(name, guess, self.said.truth):.4f}" for name in names)),
        ]
        if len(self.scores) > 1:
            rows.insert(1, (f"the network, {len(self.scores)} seeds", *(mean_and_std(each[name][0]) for name in names)))
        header = ("", *(_SHOWN[name] for name in names))
        table = Table("Against gradient boosting", header, tuple(rows), f"{self.boosted.words}.")
        return table, _verdict(
            {name: (float(np.mean(own)), float(np.mean(theirs))) for name, (own, theirs) in each.items()}
        )

    def _protocol(self) -> str:
        first = _SHOWN[self.measures[0]]
        return (
            f"Validated on rows held out {self.split.method}. The best epoch was chosen by the {first} on them; "
            "the settings of gradient boosting by training rows alone."
        )

    def _on_the_interval(self) -> str:
        share = self.coverage
        return (
            f"The {share:.0%} interval is the network's own, its ends {self.stretch:.2f} times as far out as "
            f"it says, by conformal calibration on half of the validation rows ({self.split.calibration_rule}); it held "
            f"for {self.said.covered():.1%} of the other half."
        )

    def _worst(self) -> Table:
        times = self.times
        named = [f"validation row {i}" for i in range(len(self.said.truth))]
        names = named if times is None else times_as_text(times)
        return worst(names, self.said, np.abs(self._apart()))

    def _apart(self) -> Numbers:
        """Said less is, as it is learnt: a share, all but, where that is the logarithm."""
        scale = self.scale
        if not scale.log:
            return self.said.value - self.said.truth
        truth = np.maximum(self.said.truth, scale.low)
        found: Numbers = np.log(self.said.value + scale.shift) - np.log(truth + scale.shift)
        return found

    def _figures(self) -> tuple[Figure, ...]:
        said, log = self.said, self.scale.log
        note = "In logarithms: 0.1 is about 10 % too much." if log else "In the target's unit."
        found = [
            Figure("Said and is", plots.against_truth(said.truth, said.value, log=log)),
            Figure("Errors", plots.spread(self._apart()), note),
        ]
        times = self.times
        if times is not None:
            when = times.to_list()
            residuals = plots.residuals(when, self._apart(), "Errors over time")
            found.append(Figure("Errors over time", residuals, note))
            last = np.argsort(times.to_numpy(), kind="stable")[-_DRAW:]
            some = [when[i] for i in last]
            parts = said.truth[last], said.value[last], said.low[last], said.high[last]
            drawn = plots.over_time(some, *parts, "The last validation rows")
            found.append(Figure("The last validation rows", drawn, "With the interval."))
        return tuple(found)

    def _failures(self, tables: Sequence[Table]) -> tuple[str, ...]:
        said = self.said
        bias = float((said.value - said.truth).mean())
        much = "too much" if bias > 0 else "too little"
        share = abs(bias) / max(abs(float(said.truth.mean())), 1e-30)
        found = [f"Over all validation rows it says {abs(bias):.3g} {much} on average, {share:.1%} of the mean."]
        found += [sentence for table in tables if (sentence := worst_group(table))]
        below, above = float((said.truth < said.low).mean()), float((said.truth > said.high).mean())
        found.append(f"{below:.1%} of the truth lay below its interval, {above:.1%} above.")
        return tuple(found)

    def _caveats(self) -> tuple[str, ...]:
        scale = self.scale
        least, most = self.train_range
        found = [
            f"Training saw {least:g} to {most:g}; no answer lies beyond {scale.low:g} and {scale.high:g}, whatever is "
            "asked."
        ]
        if scale.log:
            found.append(
                "The logarithm was learnt: errors count by their share, and the answer is nearer to the middle of what "
                "may come than to its mean, which is larger."
            )
        return tuple(found)


def _drawn(groups: Sequence[Table]) -> tuple[Figure, ...]:
    return tuple(
        Figure(
            table.title,
            plots.groups(table.title, [row[0] for row in table.rows], [float(row[3]) for row in table.rows]),
        )
        for table in groups
    )


def _verdict(errors: dict[str, tuple[float, float]]) -> str:
    """Which of the two is better, plainly; the errors are those of the network first."""
    better = [name for name, (own, theirs) in errors.items() if own < theirs]
    told = ", ".join(f"{_SHOWN[name]} {own:.4f} against {theirs:.4f}" for name, (own, theirs) in errors.items())
    if len(better) == len(errors):
        return f"The network beats gradient boosting: {told}."
    if not better:
        return f"Gradient boosting beats the network: {told} (network first). For accuracy alone, use it instead."
    wins = ", ".join(_SHOWN[name] for name in better)
    return f"Neither wins: the network is better in {wins} only; {told} (network first)."
