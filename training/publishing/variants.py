"""Variants of a published graph in lower precision: made, measured against it, and published as a new version.

Three disjoint sets of samples are used: training samples to calibrate, other training samples to choose the layers that
stay in floating point, and the validation samples, which neither has seen, to measure what a variant loses.
"""

import datetime
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from tasks.contract import Arrays, Task, count_samples
from tasks.goldens import Golden, first_difference, read_goldens, write_goldens
from tasks.manifest import (
    CARD,
    MODEL,
    BrokenModel,
    Latency,
    Manifest,
    PrecisionLoss,
    Variant,
    entries_of,
    graph_and_goldens,
    read_manifest,
    write_manifest,
)
from tasks.version_folder import write_version
from training.core.errors import CannotTrain
from training.core.provenance import code_version
from training.core.results import Comparison, SampleScores, Table
from training.core.sentences import count_of, signed
from training.engine.learner import Learner
from training.evaluation.comparison import compare_means
from training.publishing.export import ExportedNetwork, measure_batch_invariance, onnx_runner
from training.publishing.latency import BUDGET_S, compare_latency
from training.publishing.publish import replay
from training.publishing.quantization import convert_to_fp16, quantize
from training.publishing.republish import update_card

Precision = Literal["fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
MAX_LOSS = 0.5
"""Largest loss, in points, of a variant that is published."""
MIN_SPEEDUP = 1.1
"""A variant is published if it is faster by this factor on the device that would run it."""
CALIBRATION_SAMPLES, SELECTION_SAMPLES = 256, 256
_LATENCY_SAMPLES = 8
_TOLERANCES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_BATCHES = (1, 2, 7, 16)


@dataclass(frozen=True)
class MeasuredVariant:
    """A variant with its figures, published or not.

    Attributes:
        precision: what it computes in.
        loss: how much worse it is than the graph in 32 bits.
        latency: how long runs take, beside those in 32 bits.
        size: bytes of its file.
        method: how it was made, in a sentence.
        graph: its file.
        goldens: the golden requests with its answers.
        tolerance: how far its answers may be from them.
        batch_invariance: as in the manifest.
        objections: why it is not published, as clauses; none if it is.
    """

    precision: Precision
    loss: PrecisionLoss
    latency: tuple[Latency, ...]
    size: int
    method: str
    graph: Path
    goldens: tuple[Golden, ...] = ()
    tolerance: float = 0.0
    batch_invariance: Mapping[str, float] = field(default_factory=dict)
    objections: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The name of its graph in the model folder."""
        return f"model.{self.precision}.onnx"

    def for_manifest(self) -> Variant:
        """Return its description for the manifest."""
        return Variant(
            precision=self.precision,
            file=self.file,
            goldens=f"goldens.{self.precision}.json",
            golden_tolerance=self.tolerance,
            batch_invariance=dict(self.batch_invariance),
            loss=self.loss,
            latency=self.latency,
            method=self.method,
        )


@dataclass(frozen=True)
class VariantMaker:
    """Makes and measures variants of a published version.

    Attributes:
        version: the folder of the version, whose graph is in 32 bits.
        task: its task.
        learner: the learner with the data that it was trained and validated on.
        folder: where the graphs are written.
        max_loss: largest loss, in points, of a variant that is published.
        latency_budget_s: how long runs are timed, for each variant and batch size.
    """

    version: Path
    task: Task
    learner: Learner
    folder: Path
    max_loss: float = MAX_LOSS
    latency_budget_s: float = BUDGET_S

    def make(self, precisions: Sequence[Precision]) -> list[MeasuredVariant]:
        """Return a variant of each precision. Raises CannotTrain if the data is not comparable, or a graph not made."""
        if not self.learner.is_comparable(self.task):
            raise CannotTrain("The model's labels, inputs or outputs are not those of the data.")
        scores = self._scores(self.version / MODEL)
        samples = self.learner.training_inputs(CALIBRATION_SAMPLES + SELECTION_SAMPLES)
        return [self._make(precision, scores, samples) for precision in precisions]

    def _scores(self, graph: Path) -> SampleScores:
        scores = self.learner.sample_scores(ExportedNetwork(graph, self.task))
        if scores is None:
            raise CannotTrain("This task has no scores by which two graphs are compared.")
        return scores

    def _make(self, precision: Precision, fp32: SampleScores, samples: Arrays) -> MeasuredVariant:
        graph = self.folder / f"model.{precision}.onnx"
        method = self._convert(precision, graph, samples)
        loss = precision_loss(compare_means(self._scores(graph), "the graph in 32 bits", fp32.values), fp32)
        timed = _first(samples, _LATENCY_SAMPLES)
        latency = tuple(compare_latency(self.version / MODEL, graph, timed, budget_s=self.latency_budget_s))
        requests = [golden.request for golden in read_goldens(self.version)]
        goldens, tolerance = _record_goldens(graph, self.task, requests)
        run = onnx_runner(graph, self.task)
        sizes = [size for size in _BATCHES if size <= count_samples(samples)]
        return MeasuredVariant(
            precision,
            loss,
            latency,
            graph.stat().st_size,
            method,
            graph,
            goldens,
            tolerance,
            measure_batch_invariance(run, self.task, samples, sizes),
            tuple(self._objections(precision, loss, latency, goldens)),
        )

    def _convert(self, precision: Precision, graph: Path, samples: Arrays) -> str:
        """Write the graph; return how it was made."""
        source = self.version / MODEL
        if precision == "fp16":
            convert_to_fp16(source, graph)
            return "Arithmetic in 16-bit floating point, except for reductions and exponentials."
        half = count_samples(samples) // 2
        first, second = ({name: array[part] for name, array in samples.items()} for part in _halves(half))
        result = quantize(source, self.task, first, second, graph)
        kept = len(result.float_layers)
        layers = f"{result.layers - kept} of {count_of(result.layers, 'layer')} in 8 bits"
        if kept:
            layers += f"; in floating point, since the error is largest there: {', '.join(result.float_layers)}"
        return (
            f"Static quantisation with ranges of {count_of(half, 'training sample')}, weights per channel: {layers}. "
            f"Largest error of an output on other training samples: {result.error:.1%} of its spread."
        )

    def _objections(
        self, precision: Precision, loss: PrecisionLoss, latency: Sequence[Latency], goldens: Sequence[Golden]
    ) -> list[str]:
        objections = []
        if not loss.points <= self.max_loss:  # True for NaN as well.
            objections.append(f"it loses {loss.points:.2f} points of {loss.metric}; the limit is {self.max_loss:g}")
        device, name = ("cpu", "CPU") if precision == "int8" else ("cuda", "GPU")  # Where a server would run it.
        speedups = [item.speedup for item in latency if item.device == device]
        if not speedups:
            objections.append(f"it was not measured on a {name}, where it would run")
        elif min(speedups) < MIN_SPEEDUP:
            objections.append(f"it is not faster on a {name} ({min(speedups):.2f} times as fast)")
        if not goldens:
            objections.append("no golden request has an answer that survives rounding errors")
        return objections


def _halves(half: int) -> tuple[slice, slice]:
    return slice(0, half), slice(half, 2 * half)


def _first(arrays: Arrays, count: int) -> Arrays:
    return {name: array[:count] for name, array in arrays.items()}


def precision_loss(comparison: Comparison, scores: SampleScores) -> PrecisionLoss:
    """Return the loss of a variant from its comparison with the graph in 32 bits, which has these scores.

    In percentage points for scores from 0 to 1 that are better if higher, otherwise in percent of the 32-bit value.
    """
    values = scores.values[np.isfinite(scores.values)]
    is_fraction = not scores.lower_is_better and bool(((values >= 0) & (values <= 1)).all())
    unit = 0.01 if is_fraction else abs(comparison.other_value) / 100 or 1.0
    low, high = comparison.interval
    return PrecisionLoss(
        metric=comparison.metric,
        value=comparison.value,
        fp32_value=comparison.other_value,
        points=-comparison.gain / unit + 0.0,  # Not -0.
        interval=(-high / unit + 0.0, -low / unit + 0.0) if np.isfinite(low + high) else None,
        samples=comparison.counted,
    )


def _record_goldens(graph: Path, task: Task, requests: Sequence[dict[str, object]]) -> tuple[tuple[Golden, ...], float]:
    """Return the graph's answers to the golden requests, and a tolerance.

    Another processor rounds at other places, and a value that is rounded the other way is a whole step of 8 bits away.
    That is imitated by running the graph without the runtime's optimisations, in floating point between the steps. The
    tolerance is twice what that changes, as far as the choices go; requests whose answers differ by more are left out.
    """
    run, unoptimised = onnx_runner(graph, task), onnx_runner(graph, task, optimised=False)
    goldens, tolerance = [], max(task.golden_tolerance, _TOLERANCES[0])
    for request in requests:
        answer, other = (task.answer(runner, request).plain() for runner in (run, unoptimised))
        needed = next((limit for limit in _TOLERANCES if first_difference(answer, other, limit / 2) is None), None)
        if needed is not None:
            goldens.append(Golden(request=request, answer=answer))
            tolerance = max(tolerance, needed)
    return tuple(goldens), tolerance


def publish_variants(last: Path, variants: Sequence[MeasuredVariant], card_section: Callable[[Manifest], str]) -> Path:
    """Publish the version `last` again, with the variants to which there is no objection; return the new folder.

    Its graph, task and golden requests stay as they are. Variants that it had before are replaced. Raises BrokenModel
    if the new version does not reproduce its goldens; nothing is left of it then.
    """

    def write(folder: Path, version: str) -> None:
        old = read_manifest(last)
        superseded = {name for variant in old.variants for name in graph_and_goldens(variant)}
        shutil.copytree(last, folder, dirs_exist_ok=True, ignore=lambda _, names: superseded & set(names))
        published = [variant for variant in variants if not variant.objections]
        for variant in published:
            shutil.copyfile(variant.graph, folder / variant.file)
            write_goldens(folder, variant.goldens, variant.for_manifest().goldens)
        manifest = old.model_copy(
            update={
                "version": version,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "code": code_version(),
                "variants": tuple(variant.for_manifest() for variant in published),
            }
        )
        update_card(folder / CARD, manifest, card_section(manifest))
        write_manifest(folder, manifest.model_copy(update={"files": entries_of(folder)}))
        try:
            replay(folder)
        except BrokenModel as error:
            raise CannotTrain(f"Not published: {error}") from None

    return write_version(last.parent, write)


def variants_table(fp32_size: int, variants: Sequence[MeasuredVariant]) -> Table:
    """Return a row for the graph in 32 bits and one for each variant: metric, loss, size and latency."""
    metric = variants[0].loss.metric
    batches = [latency for latency in variants[0].latency if latency.device == "cpu"]
    columns = tuple(f"CPU, batch of {latency.batch}, ms" for latency in batches)
    header = ("precision", metric, "loss, points", "95 % interval", "size, MB", *columns, "speed-up", "published")
    rows = [
        (
            "fp32",
            f"{variants[0].loss.fp32_value:.4f}",
            "",
            "",
            f"{fp32_size / 1e6:.2f}",
            *(f"{latency.fp32_milliseconds:.3g}" for latency in batches),
            "",
            "yes",
        )
    ]
    for variant in variants:
        loss, own = variant.loss, [latency for latency in variant.latency if latency.device == "cpu"]
        interval = "unknown" if loss.interval is None else f"{signed(loss.interval[0])} to {signed(loss.interval[1])}"
        rows.append(
            (
                variant.precision,
                f"{loss.value:.4f}",
                f"{loss.points:+.2f}",
                interval,
                f"{variant.size / 1e6:.2f}",
                *(f"{latency.milliseconds:.3g}" for latency in own),
                ", ".join(f"{latency.speedup:.2f}" for latency in own),
                "no: " + "; ".join(variant.objections) if variant.objections else "yes",
            )
        )
    return Table("Precision", header, tuple(rows))
