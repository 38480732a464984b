"""A training run from data to report and model; combines the other parts."""

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tasks.manifest import Manifest, sha256_of
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.files import write_file
from training.core.recipe import select_preset
from training.core.results import EpochLog, Evaluation, RunResult, Trained
from training.core.sentences import plain_number
from training.data.download import Fetcher, content_hash
from training.engine import checkpoint
from training.engine.batches import infinite_batches
from training.engine.learner import Learner, Trainable
from training.engine.loop import fit
from training.engine.lr_finder import RateSearch, find_rate
from training.engine.optim import make_optimizer
from training.engine.runtime import Runtime, describe_hardware
from training.evaluation.comparison import comparison_table
from training.evaluation.embeddings import write_embeddings
from training.publishing.export import Artefacts, Export, export_to_folder
from training.publishing.previous_version import compare_with_previous
from training.publishing.publish import Publication, find_objections, publish, refuse_worse_model
from training.registry import learner_type, load_recipe, recipe_names
from training.reporting import plots, run_folder
from training.reporting.report import ReportContext
from training.reporting.run_folder import Plan

_PARITY_SAMPLES = 64
_FILES_OF_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that appear where a folder is looked at; the data is the same with them."""
_EXPORT = "export"
"""The folder of the exported files in a run folder."""


@dataclass(frozen=True)
class Session:
    """A plan with its learner, on a runtime."""

    plan: Plan
    learner: Learner
    runtime: Runtime
    data_sha256: str = ""

    @property
    def workers(self) -> int:
        """Number of processes that prepare batches; 0 (the training process itself) on a CPU."""
        requested = self.plan.settings.workers
        if requested >= 0:
            return requested
        cores = os.cpu_count() or 1
        return min(8, max(1, cores // (2 * self.runtime.world_size))) if self.runtime.device.type == "cuda" else 0

    def train(self, folder: Path) -> RunResult:
        """Train the phases, then the network once per seed; prints a row per epoch."""
        networks, histories, phase_histories = [], [], []
        settings = self.plan.settings
        for phase in self.learner.phases():
            self._print(f"{phase.name}:")
            subfolder = folder / phase.name
            subfolder.mkdir(exist_ok=True)
            network, logs = self._fit(phase.trainable, phase.settings, subfolder)
            phase.keep(network)
            if self.runtime.is_main:
                phase.save(subfolder)
            self.runtime.barrier()
            phase_histories.append(tuple(logs))
        for seed in range(settings.seed, settings.seed + settings.seeds):
            subfolder = folder / f"seed-{seed}"
            subfolder.mkdir(exist_ok=True)
            if settings.seeds > 1:
                self._print(f"seed {seed}")
            network, logs = self._fit(self.learner, replace(settings, seed=seed), subfolder)
            scores = checkpoint.load(subfolder / checkpoint.BEST)["scores"]
            networks.append(Trained(seed, network, scores))
            histories.append(tuple(logs))
        return RunResult(tuple(networks), tuple(histories), describe_hardware(self.runtime), tuple(phase_histories))

    def _fit(self, trainable: Trainable, settings: Settings, folder: Path) -> tuple[torch.nn.Module, list[EpochLog]]:
        torch.manual_seed(settings.seed)
        network = trainable.network()
        logs: list[EpochLog] = []
        for log in fit(trainable, network, settings, self.runtime, folder, workers=self.workers):
            if not logs:
                self._print(_format_header(log))
            logs.append(log)
            self._print(_format_row(log))
            if self.runtime.is_main:
                run_folder.write_history(folder, logs)
        return network.cpu(), logs

    def find_rate(self) -> RateSearch:
        """Sweep over learning rates, in the last stage, in which all of the network is trained."""
        settings = self.plan.settings
        torch.manual_seed(settings.seed)
        network = self.learner.network().to(self.runtime.device)
        stage = self.learner.stages()[-1]
        optimizer = make_optimizer(self.learner.param_groups(network, stage), stage.rate, settings.weight_decay)
        batches = infinite_batches(
            self.learner.samples, self.runtime, batch_size=settings.batch_size, seed=settings.seed, workers=self.workers
        )
        distributed = self.runtime.wrap_distributed(network)
        return find_rate(distributed, self.learner.loss, optimizer, batches, self.runtime, clip=settings.clip)

    def _print(self, text: str) -> None:
        if self.runtime.is_main:
            print(text, flush=True)


def open_session(plan: Plan, data: Path | None, fetcher: Fetcher, runtime: Runtime) -> Session:
    """Create the session of a plan: fetches the recipe's data if needed, then reads and checks it.

    Raises CannotTrain.
    """
    source = plan.recipe.source
    if data is None and source is None:
        raise CannotTrain("There is no data to train on: specify it with --data.")
    if runtime.is_main:
        _provide_data(plan, data, fetcher)
    runtime.barrier()
    path = _provide_data(plan, data, fetcher)
    learner = learner_type(plan.recipe.task).from_data(path, plan.settings, plan.options, fetcher)
    sha256 = fetcher.sha256(source) if data is None and source else hash_data(data or path)
    return Session(plan, learner, runtime, sha256)


def open_training_data(
    manifest: Manifest, fetcher: Fetcher, plan: Plan | None = None, data: Path | None = None
) -> Session:
    """Read and split the data of a published model as its training did, on the CPU.

    Args:
        manifest: that of the published version.
        fetcher: fetches the recipe's data.
        plan: the plan of the training; None: that of the model's recipe.
        data: the data, if it is the user's own.

    Raises CannotTrain if no recipe has trained the model and there is no plan, or the data is not the same.
    """
    if plan is None:
        if manifest.name not in recipe_names():
            raise CannotTrain(
                f"{manifest.name} is not the model of a recipe; the options of its training are not known."
            )
        recipe = select_preset(load_recipe(manifest.name), gpu=False)
        plan = Plan(recipe, recipe.settings, recipe.options, "")
    session = open_session(plan, data, fetcher, Runtime(torch.device("cpu")))
    if session.data_sha256 != manifest.data.sha256:
        which = "use the same files" if data else "use the same archive, of the official address or of the --mirror"
        raise CannotTrain(
            f"The data has the SHA-256 {session.data_sha256}, not {manifest.data.sha256}, with which {manifest.name} "
            f"{manifest.version} was trained: {which}."
        )
    return session


def _provide_data(plan: Plan, data: Path | None, fetcher: Fetcher) -> Path:
    """Return the path that the learner reads: given or fetched, and prepared (once, atomically) by the recipe."""
    recipe = plan.recipe
    if data is not None:
        raw, sha256 = data, hash_data(data) if recipe.prepare else ""
    elif recipe.source is not None:
        raw = fetcher.fetch(recipe.source)
        sha256 = fetcher.sha256(recipe.source)
    else:
        return Path()
    if recipe.prepare is None:
        return raw
    target = fetcher.folder / f"{recipe.name}-{sha256[:8]}"
    if not target.exists():
        partial = target.with_name(f".{target.name}.preparing")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            recipe.prepare(raw, partial)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return target


def hash_data(data: Path) -> str:
    """The hash of a file, or of all files in a folder with their names; links are followed, as in reading."""
    return sha256_of(data) if data.is_file() else content_hash(list(_files_in(data, set())), data)


def _files_in(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the files in a folder; `seen` holds the folders that were entered, in which links may lead back."""
    seen.add(folder.resolve())
    for path in folder.iterdir():
        if path.is_file() and path.name not in _FILES_OF_SYSTEMS:
            yield path
        elif path.is_dir() and path.resolve() not in seen:
            yield from _files_in(path, seen)


def _format_header(log: EpochLog) -> str:
    names = "".join(f"{'val loss' if name == 'loss' else name:>{_width(name)}}" for name in log.scores)
    return f"{'epoch':>5}  {'stage':<8}{'loss':>9}{names}{'rate':>10}{'/s':>8}{'time':>7}"


def _width(name: str) -> int:
    return max(10, len(name) + 2)


def _format_score(value: float) -> str:
    """Four decimals, and fewer for large numbers, which would fill the space between two columns."""
    return f"{value:.4f}" if abs(value) < 100 else plain_number(value, 5)


def _format_row(log: EpochLog) -> str:
    scores = "".join(f"{_format_score(value):>{_width(name)}}" for name, value in log.scores.items())
    duration = f"{int(log.seconds) // 60}:{int(log.seconds) % 60:02}"
    pace = f"{log.rate:>10.1e}{log.samples_per_second:>8.0f}{duration:>7}"
    return f"{log.epoch:>5}  {log.stage:<8}{_format_score(log.loss):>9}{scores}{pace}"


def run(session: Session, runtime: Runtime, arguments: argparse.Namespace) -> Path | None:
    """Train, report and, if requested, publish; return the run folder, or None after a sweep over learning rates."""
    plan, learner = session.plan, session.learner
    if runtime.is_main:
        print(f"{plan.recipe.name}: {learner.data_summary()}")
        print(f"Training on {runtime.device}, {runtime.precision} ({runtime.reason}).", flush=True)
    root = Path(arguments.runs) / plan.recipe.name
    if arguments.find_lr:
        _find_rate(session, root)
        return None
    path = ""
    if runtime.is_main:
        fingerprint = plan.fingerprint(learner, runtime, session.data_sha256)
        epochs = sum(stage.epochs for stage in learner.stages())
        # Publishing may have been refused or interrupted, or was not asked for: training again would change nothing.
        resume = "publish" if arguments.publish and arguments.resume == "auto" else arguments.resume
        if start := run_folder.describe_start(root, fingerprint, resume, epochs):
            print(start, flush=True)
        path = str(run_folder.find_or_create(root, fingerprint, resume))
    folder = Path(runtime.broadcast(path))
    with run_folder.lock(folder) if runtime.is_main else nullcontext():
        if arguments.resume == "keep":
            result = _existing_result(folder, arguments) if runtime.is_main else ""
            if runtime.broadcast(result):
                return folder
        run_result = session.train(folder)
        if runtime.is_main:
            _report_and_publish(session, run_result, folder, arguments)
    runtime.barrier()
    return folder


def _existing_result(folder: Path, arguments: argparse.Namespace) -> str:
    """Return (and print) the result that exists already; empty if anything that was requested is missing."""
    if arguments.publish:
        result = run_folder.published_version(folder, Path(arguments.models))
    else:
        result = str(folder / "index.html")
    if not run_folder.read_metrics(folder) or not result or arguments.export_embeddings:
        return ""
    print(f"Already done: {result}")
    return result


def _find_rate(session: Session, root: Path) -> None:
    search = session.find_rate()
    if not session.runtime.is_main:
        return
    root.mkdir(parents=True, exist_ok=True)
    plot = root / "find-lr.png"
    write_file(plot, plots.draw_rate_search(search))
    print(f"Suggested: --rate {search.suggestion:.1e}, where the loss falls fastest. Plot: {plot}")


def _with_previous_version(evaluation: Evaluation, learner: Learner, export: Export, model: Path) -> Evaluation:
    previous = compare_with_previous(learner, export, model)
    comparisons = (*evaluation.comparisons, *previous.comparisons)
    return replace(evaluation, comparisons=comparisons, notes=(*evaluation.notes, *previous.notes))


def _with_comparison_table(evaluation: Evaluation) -> Evaluation:
    if not evaluation.comparisons:
        return evaluation
    return replace(evaluation, tables=(comparison_table(evaluation.comparisons), *evaluation.tables))


def _with_objections(evaluation: Evaluation) -> Evaluation:
    """Return the evaluation with what speaks against the model as caveats, which its card states if it is published."""
    sentences = (f"{clause[:1].upper()}{clause[1:]}." for clause in find_objections(evaluation))
    return replace(evaluation, caveats=(*evaluation.caveats, *sentences))


def _report_and_publish(session: Session, result: RunResult, folder: Path, arguments: argparse.Namespace) -> None:
    """Write the report and, if requested, publish; called by the main process."""
    plan, learner = session.plan, session.learner
    served = learner.to_inference_module(result.trained[0].network)
    artefacts = Artefacts(fp16=not arguments.full_precision, torchscript=arguments.torchscript)
    samples = learner.validation_inputs(_PARITY_SAMPLES)
    export = export_to_folder(served, learner.calibrated_task(served), samples, folder / _EXPORT, artefacts)
    evaluation = learner.evaluate(result.trained, served, export.network)
    if arguments.publish:
        evaluation = _with_previous_version(evaluation, learner, export, Path(arguments.models) / plan.recipe.name)
    evaluation = _with_objections(_with_comparison_table(evaluation))
    context = ReportContext(
        plan,
        result,
        evaluation,
        learner.data_summary(),
        learner.hub_tag,
        session.runtime,
        run_folder.read_code_version(folder),
    )
    write_file(folder / "index.html", context.report())
    run_folder.mark_done(folder, {metric.name: metric.value for metric in evaluation.metrics})
    for metric in evaluation.metrics:
        print(f"{metric.name:<26}{metric.value:>8.4f}  {metric.protocol}")
    for comparison in evaluation.comparisons:
        print(comparison.sentence())
    for note in evaluation.notes:
        print(note)
    print(f"Report: {folder / 'index.html'}")
    if arguments.export_embeddings:
        file = Path(arguments.export_embeddings)
        rows = write_embeddings(file, learner.embeddings(result.trained[0].network))
        print(f"Embeddings: {rows:,} vectors in {file}")
    if arguments.publish:
        if not arguments.anyway:
            refuse_worse_model(evaluation)
        publication = Publication(plan.recipe, evaluation, session.data_sha256, Path(arguments.models), export)
        model = publish(publication, learner, served, context.card)
        run_folder.mark_published(folder, model)
        print(f"Published: {model}")
