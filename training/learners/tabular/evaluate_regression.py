"""What is known of a network of numbers: its figures beside those of gradient boosting, over time and by group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from tasks.manifest import Metric
from training.core.results import Evaluation, Figure, Table, Trained
from training.data.tables import times_as_text
from training.evaluation.classification import mean_and_std
from training.learners.tabular import plots
from training.learners.tabular.boosting import Boosted, boosted_numbers
from training.learners.tabular.residuals import Predicted, by_column, by_time, worst, worst_group
from training.learners.tabular.target_scale import WORDS, error, explained

if TYPE_CHECKING:
    from training.learners.tabular.regression import NumbersLearner

Numbers = NDArray[np.floating]

_SHOWN = {"rmsle": "RMSLE", "rmspe": "RMSPE", "rmse": "RMSE", "mae": "MAE"}
_DRAW = 14 * 24


@dataclass(frozen=True)
class NumberFindings:
    """The parts of the findings on a learner's first trained network.

    Attributes:
        learner: whose validation rows these are.
        trained: the networks of all seeds.
        said: what the first one says, as it is served.
        stretch: by which calibration stretched its interval.
    """

    learner: "NumbersLearner"
    trained: Sequence[Trained]
    said: Predicted
    stretch: float

    def written(self, tables: tuple[Table, ...], more: tuple[Figure, ...]) -> Evaluation:
        """All of it, with the tables and figures that the learner adds."""
        learner, said, first = self.learner, self.said, self.learner.measures[0]
        boosted = self._boosted()
        times = learner.times()
        over_time = by_time(times, said, first) if times is not None else ()
        groups = tuple(by_column(learner.valid_frame[name], said, first) for name in learner.chosen.audit)
        baseline, verdict = self._against(boosted)
        return Evaluation(
            metrics=(*self._metrics(), *self._over_seeds(boosted)),
            notes=(self._protocol(), verdict, self._on_the_interval()),
            tables=(baseline, *over_time, *groups, self._worst(), *tables),
            figures=(*self._figures(), *_drawn(groups), *more),
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
            for name in self.learner.measures
        ]
        r2 = explained(said.value, said.truth)
        found.append(Metric(name="r2", value=r2, protocol=f"{WORDS['r2']}, {self._samples}"))
        share = f"{self.learner.task.coverage:.0%}"
        protocol = (
            f"share of {measured:,} validation rows that did not calibrate it in the interval meant to hold {share}"
        )
        found.append(Metric(name="coverage", value=said.covered(), protocol=protocol))
        width = float(np.median(said.high - said.low))
        found.append(Metric(name="interval_width", value=width, protocol=f"median, {self._samples}"))
        return tuple(found)

    def _boosted(self) -> Boosted:
        learner = self.learner
        inner = learner.splitter.inner_holdout(learner.train_frame, learner.strata_of_training())
        truth = learner.train_truth()

        def judged(found: Numbers, where: NDArray[np.bool_]) -> float:
            return error(learner.measures[0], self._bounded(found), truth[where])

        seeds = [each.seed for each in self.trained]
        return boosted_numbers(learner.task.schema, learner.samples, learner.held_out, inner, judged, seeds)

    def _bounded(self, learnt: Numbers) -> Numbers:
        """In the target's unit and within the bounds: what the network cannot exceed, boosting is not to either."""
        return self.learner.in_its_unit(learnt).clip(self.learner.scale.low, self.learner.scale.high)

    def _errors(self, measure: str, boosted: Boosted) -> tuple[list[float], list[float]]:
        """Of the network and of boosting, one a seed."""
        theirs = [error(measure, self._bounded(found), self.said.truth) for found in boosted.found]
        return [each.scores[measure] for each in self.trained], theirs

    def _over_seeds(self, boosted: Boosted) -> tuple[Metric, ...]:
        first = self.learner.measures[0]
        own, theirs = self._errors(first, boosted)
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

    def _against(self, boosted: Boosted) -> tuple[Table, str]:
        """The network beside boosting and beside a guess that knows no column, and who wins."""
        names = self.learner.measures
        each = {name: self._errors(name, boosted) for name in names}
        guess = self._bounded(np.full(len(self.said.truth), float(self.learner.samples.targets.mean())))
        rows = [
            ("this network (published)", *(f"{error(name, self.said.value, self.said.truth):.4f}" for name in names)),
            (f"gradient boosting, {len(boosted.found)} seeds", *(mean_and_std(each[name][1]) for name in names)),
            ("always the training rows' mean", *(f"{error(name, guess, self.said.truth):.4f}" for name in names)),
        ]
        if len(self.trained) > 1:
            rows.insert(
                1, (f"the network, {len(self.trained)} seeds", *(mean_and_std(each[name][0]) for name in names))
            )
        header = ("", *(_SHOWN[name] for name in names))
        table = Table("Against gradient boosting", header, tuple(rows), f"{boosted.words}.")
        return table, _verdict(
            {name: (float(np.mean(own)), float(np.mean(theirs))) for name, (own, theirs) in each.items()}
        )

    def _protocol(self) -> str:
        first = _SHOWN[self.learner.measures[0]]
        return (
            f"Validated on rows held out {self.learner.split.method}. The best epoch was chosen by the {first} on "
            "them; the settings of gradient boosting by training rows alone."
        )

    def _on_the_interval(self) -> str:
        share = self.learner.task.coverage
        return (
            f"The {share:.0%} interval is the network's own, its ends {self.stretch:.2f} times as far out as "
            f"it says, by conformal calibration on half of the validation rows "
            f"({self.learner.split.calibration_rule}); it held "
            f"for {self.said.covered():.1%} of the other half."
        )

    def _worst(self) -> Table:
        times = self.learner.times()
        named = [f"validation row {i}" for i in range(len(self.said.truth))]
        names = named if times is None else times_as_text(times)
        return worst(names, self.said, np.abs(self._apart()))

    def _apart(self) -> Numbers:
        """Said less is, as it is learnt: a share, all but, where that is the logarithm."""
        scale = self.learner.scale
        if not scale.log:
            return self.said.value - self.said.truth
        truth = np.maximum(self.said.truth, scale.low)
        found: Numbers = np.log(self.said.value + scale.shift) - np.log(truth + scale.shift)
        return found

    def _figures(self) -> tuple[Figure, ...]:
        said, log = self.said, self.learner.scale.log
        note = "In logarithms: 0.1 is about 10 % too much." if log else "In the target's unit."
        found = [
            Figure("Said and is", plots.against_truth(said.truth, said.value, log=log)),
            Figure("Errors", plots.spread(self._apart()), note),
        ]
        times = self.learner.times()
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
        scale = self.learner.scale
        least, most = cast(tuple[float, float], self.learner.task.spread)
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
