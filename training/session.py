"""One training session from data to report and model; the parts are joined here."""

import argparse
import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tasks.manifest import sha256_of
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.results import EpochLog, RunResult, Trained
from training.data.download import Fetcher, content_hash
from training.engine import checkpoint
from training.engine.batches import infinite_batches
from training.engine.learner import Learner, Trainable
from training.engine.loop import fit
from training.engine.lr_finder import RateSearch, find_rate
from training.engine.optim import make_optimizer
from training.engine.runtime import Runtime, describe_hardware
from training.evaluation.embeddings import write_embeddings
from training.publishing.export import Artefacts
from training.publishing.publish import Publication, publish
from training.registry import learner_type
from training.reporting import plots, run_folder
from training.reporting.report import ReportContext
from training.reporting.run_folder import Plan


@dataclass(frozen=True)
class Session:
    """A plan with its learner, on a runtime."""

    plan: Plan
    learner: Learner
    runtime: Runtime
    data_sha256: str = ""

    @property
    def workers(self) -> int:
        """Processes that prepare batches; the training process itself does so where cores are scarce."""
        asked = self.plan.settings.workers
        if asked >= 0:
            return asked
        cores = os.cpu_count() or 1
        return min(8, max(1, cores // (2 * self.runtime.world_size))) if self.runtime.device.type == "cuda" else 0

    def trained(self, folder: Path) -> RunResult:
        """Trains once for each seed, printing a row an epoch."""
        networks, histories, before = [], [], []
        settings = self.plan.settings
        for phase in self.learner.phases():
            self._say(f"{phase.name}:")
            inner = folder / phase.name
            inner.mkdir(exist_ok=True)
            network, rows = self._fitted(phase.trainable, phase.settings, inner)
            if self.runtime.is_main:
                phase.save(network, inner)
            self.runtime.barrier()
            before.append(tuple(rows))
        for seed in range(settings.seed, settings.seed + settings.seeds):
            inner = folder / f"seed-{seed}"
            inner.mkdir(exist_ok=True)
            if settings.seeds > 1:
                self._say(f"seed {seed}")
            network, rows = self._fitted(self.learner, replace(settings, seed=seed), inner)
            scores = checkpoint.load(inner / checkpoint.BEST)["scores"]
            networks.append(Trained(seed, network, scores))
            histories.append(tuple(rows))
        return RunResult(tuple(networks), tuple(histories), describe_hardware(self.runtime), tuple(before))

    def _fitted(self, trainee: Trainable, settings: Settings, folder: Path) -> tuple[torch.nn.Module, list[EpochLog]]:
        torch.manual_seed(settings.seed)
        network = trainee.network()
        rows: list[EpochLog] = []
        for row in fit(trainee, network, settings, self.runtime, folder, workers=self.workers):
            if not rows:
                self._say(_header(row))
            rows.append(row)
            self._say(_line(row))
            if self.runtime.is_main:
                run_folder.write_history(folder, rows)
        return network.cpu(), rows

    def searched(self) -> RateSearch:
        """A sweep over learning rates for the first stage with everything learning."""
        settings = self.plan.settings
        torch.manual_seed(settings.seed)
        network = self.learner.network().to(self.runtime.device)
        stage = self.learner.stages()[-1]
        optimizer = make_optimizer(self.learner.param_groups(network, stage), stage.rate, settings.weight_decay)
        batches = infinite_batches(
            self.learner.samples, self.runtime, batch_size=settings.batch_size, seed=settings.seed, workers=self.workers
        )
        return find_rate(network, self.learner.loss, optimizer, batches)

    def _say(self, text: str) -> None:
        if self.runtime.is_main:
            print(text, flush=True)


def open_session(plan: Plan, data: Path | None, fetcher: Fetcher, runtime: Runtime) -> Session:
    """The session of a plan: data fetched where the recipe names it, read and checked. Raises CannotTrain."""
    source = plan.recipe.source
    if data is None and source is None:
        raise CannotTrain("There is no data to train on: name it with --data.")
    if runtime.is_main:
        _ready(plan, data, fetcher)
    runtime.barrier()
    read = _ready(plan, data, fetcher)
    learner = learner_type(plan.recipe.task).from_data(read, plan.settings, plan.options, fetcher)
    return Session(plan, learner, runtime, fetcher.sha256(source) if data is None and source else _hash(data or read))


def _ready(plan: Plan, data: Path | None, fetcher: Fetcher) -> Path:
    """What the learner reads: given, or fetched, and prepared where the recipe says how; once, and whole or not."""
    recipe = plan.recipe
    if data is not None:
        found, content = data, _hash(data) if recipe.prepare else ""
    elif recipe.source is not None:
        found = fetcher.fetch(recipe.source)
        content = fetcher.sha256(recipe.source)
    else:
        return Path()
    if recipe.prepare is None:
        return found
    target = fetcher.folder / f"{recipe.name}-{content[:8]}"
    if not target.exists():
        partial = target.with_name(f".{target.name}.preparing")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        recipe.prepare(found, partial)
        partial.rename(target)
    return target


def _hash(data: Path) -> str:
    """Which data this was: the hash of a file, or of all files of a folder with their names."""
    return sha256_of(data) if data.is_file() else content_hash([p for p in data.rglob("*") if p.is_file()], data)


def _header(row: EpochLog) -> str:
    names = "".join(f"{'val loss' if name == 'loss' else name:>{_width(name)}}" for name in row.scores)
    return f"{'epoch':>5}  {'stage':<8}{'loss':>9}{names}{'rate':>10}{'/s':>8}{'time':>7}"


def _width(name: str) -> int:
    return max(10, len(name) + 2)


def _line(row: EpochLog) -> str:
    scores = "".join(f"{value:>{_width(name)}.4f}" for name, value in row.scores.items())
    clock = f"{int(row.seconds) // 60}:{int(row.seconds) % 60:02}"
    pace = f"{row.rate:>10.1e}{row.samples_per_second:>8.0f}{clock:>7}"
    return f"{row.epoch:>5}  {row.stage:<8}{row.loss:>9.4f}{scores}{pace}"


def run(session: Session, runtime: Runtime, chosen: argparse.Namespace) -> Path | None:
    """Trains, reports and, if asked, publishes; returns the run folder, or None where only the rate was searched."""
    plan, learner = session.plan, session.learner
    if runtime.is_main:
        print(f"{plan.recipe.name}: {learner.data_summary()}")
        print(f"Training on {runtime.device}, {runtime.precision} ({runtime.reason}).", flush=True)
    root = Path(chosen.runs) / plan.recipe.name
    if chosen.find_lr:
        _find_rate(session, root)
        return None
    found = (
        run_folder.find_or_create(root, plan.fingerprint(learner, runtime), chosen.resume) if runtime.is_main else ""
    )
    folder = Path(runtime.broadcast(str(found)))
    with run_folder.lock(folder) if runtime.is_main else nullcontext():
        if chosen.resume == "keep" and runtime.broadcast(_done_before(folder, chosen) if runtime.is_main else ""):
            return folder
        outcome = session.trained(folder)
        if runtime.is_main:
            _report_and_publish(session, outcome, folder, chosen)
    runtime.barrier()
    return folder


def _done_before(folder: Path, chosen: argparse.Namespace) -> str:
    """Says, and returns, what is there already of all that was asked for; empty where something is missing."""
    there = run_folder.published_version(folder, Path(chosen.models)) if chosen.publish else str(folder / "index.html")
    if not run_folder.read_metrics(folder) or not there or chosen.export_embeddings:
        return ""
    print(f"Done before: {there}")
    return there


def _find_rate(session: Session, root: Path) -> None:
    search = session.searched()
    root.mkdir(parents=True, exist_ok=True)
    plot = root / "find-lr.png"
    plot.write_bytes(plots.draw_rate_search(search))
    print(f"Suggested: --rate {search.suggestion:.1e}, where the loss falls fastest. The curve: {plot}")


def _report_and_publish(session: Session, outcome: RunResult, folder: Path, chosen: argparse.Namespace) -> None:
    """Report and, if wanted, publication, by the first process."""
    plan, learner = session.plan, session.learner
    served = learner.to_inference_module(outcome.trained[0].network)
    findings = learner.evaluate(outcome.trained, served)
    story = ReportContext(
        plan,
        outcome,
        findings,
        learner.data_summary(),
        learner.hub_tag,
        session.runtime,
        run_folder.read_code_version(folder),
    )
    (folder / "index.html").write_text(story.report(), encoding="utf-8")
    run_folder.mark_done(folder, {metric.name: metric.value for metric in findings.metrics})
    for metric in findings.metrics:
        print(f"{metric.name:<26}{metric.value:>8.4f}  {metric.protocol}")
    for note in findings.notes:
        print(note)
    print(f"Report: {folder / 'index.html'}")
    if chosen.export_embeddings:
        file = Path(chosen.export_embeddings)
        rows = write_embeddings(file, learner.embeddings(outcome.trained[0].network))
        print(f"Embeddings: {rows:,} vectors in {file}")
    if chosen.publish:
        artefacts = Artefacts(half=not chosen.full_precision, torchscript=chosen.torchscript)
        what = Publication(plan.recipe, findings, session.data_sha256, Path(chosen.models), artefacts)
        model = publish(what, learner, served, story.card)
        run_folder.mark_published(folder, model)
        print(f"Published: {model}")
