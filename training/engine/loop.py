"""The training loop: stages of epochs, epochs of steps; a run can be killed at any time and resumed.

The randomness of step k is a function of the seed and k; the order of an epoch is a function of the seed and the epoch.
A run resumed from a checkpoint therefore takes exactly the steps of an uninterrupted one, and no generator state is
saved.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.results import EpochLog
from training.engine import checkpoint
from training.engine.batches import derived_seed, make_loader
from training.engine.learner import Stage, Trainable
from training.engine.optim import make_optimizer, one_cycle_schedule
from training.engine.runtime import Batch, Runtime

Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Progress:
    """Training progress: completed epochs, steps into the current one, the sum of their losses, and the best epoch.

    `best` is the learner's first score in the best epoch, negated if lower is better; `best_loss` is that epoch's loss.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    best: float = -math.inf
    best_loss: float = math.inf

    def is_improved_by(self, score: float, loss: float) -> bool:
        """Return whether an epoch is the best so far: by its score and, if scores are equal, by its loss.

        The first epoch always is. A score that is NaN counts as the lowest of all.
        """
        return self.epoch == 0 or (_or_worst(score), _or_worst(-loss)) > (self.best, _or_worst(-self.best_loss))


def _or_worst(score: float) -> float:
    return -math.inf if math.isnan(score) else score


def train_step(
    network: nn.Module, loss: Loss, batch: Batch, optimizer: Optimizer, runtime: Runtime, *, clip: float
) -> Tensor:
    """Forward, loss, backward, optimiser step. Returns the loss, detached."""
    optimizer.zero_grad(set_to_none=True)
    with runtime.autocast():
        value = loss(network, batch)
    value.backward()  # type: ignore[no-untyped-call]
    if clip:
        nn.utils.clip_grad_norm_((p for group in optimizer.param_groups for p in group["params"]), clip)
    optimizer.step()
    return value.detach()


def fit(
    learner: Trainable, network: nn.Module, settings: Settings, runtime: Runtime, folder: Path, *, workers: int = 0
) -> Iterator[EpochLog]:
    """Train the network in place and yield a log entry per epoch; afterwards the network has its best weights.

    Checkpoints are written to `folder`. Where one exists, its log is yielded and training resumes from it.
    """
    last = folder / checkpoint.LAST
    saved = checkpoint.load(last) if last.exists() else None
    history = [EpochLog(**log) for log in saved["history"]] if saved else []
    progress = Progress(**saved["progress"]) if saved else Progress()
    yield from history
    network.to(runtime.device)
    if saved:
        network.load_state_dict(saved["network"])
    first, stages = 0, learner.stages()
    for stage in stages:
        end = first + stage.epochs
        if progress.epoch < end:
            in_this_stage = saved if saved and (progress.epoch, progress.step) > (first, 0) else None
            run = _StageRun(learner, network, stage, settings, runtime, in_this_stage)
            while progress.epoch < end:
                started = time.perf_counter()
                for reached in run.train_epoch(progress, sum(stage.epochs for stage in stages), workers):
                    progress = reached
                    if settings.checkpoint_steps and progress.step % settings.checkpoint_steps == 0:
                        _save(last, network, run, progress, history, runtime)
                log, progress = _finish_epoch(learner, network, run, progress, started, runtime, folder)
                history.append(log)
                _save(last, network, run, progress, history, runtime)
                yield log
        first = end
    runtime.barrier()  # Wait until the main process has written the best weights.
    network.load_state_dict(checkpoint.load(folder / checkpoint.BEST)["network"])


class _StageRun:
    """A stage in progress: the (distributed) network, its optimiser and its schedule."""

    def __init__(
        self,
        learner: Trainable,
        network: nn.Module,
        stage: Stage,
        settings: Settings,
        runtime: Runtime,
        saved: dict[str, Any] | None,
    ) -> None:
        self.learner, self.stage, self.settings, self.runtime = learner, stage, settings, runtime
        # Networks that are trained with several seeds must not all see the same augmented samples.
        self.samples = learner.samples.for_seed(settings.seed)
        self.steps = self.samples.steps(settings.batch_size)
        self.optimizer = make_optimizer(learner.param_groups(network, stage), stage.rate, settings.weight_decay)
        self.schedule: LRScheduler = one_cycle_schedule(self.optimizer, self.steps * stage.epochs)
        self.network = runtime.wrap_distributed(network)
        if saved:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.schedule.load_state_dict(saved["schedule"])

    def train_epoch(self, progress: Progress, epochs: int, workers: int) -> Iterator[Progress]:
        """Take the remaining steps of the epoch, and yield the progress every few steps."""
        settings, runtime, samples = self.settings, self.runtime, self.samples
        keys = samples.batch_keys(
            settings.batch_size,
            seed=settings.seed,
            epoch=progress.epoch,
            rank=runtime.rank,
            world_size=runtime.world_size,
        )
        batches = make_loader(samples, keys[progress.step :], runtime, workers=workers)
        self.network.train()
        total = torch.tensor(progress.loss, dtype=torch.float64, device=runtime.device)
        title = f"epoch {progress.epoch + 1}/{epochs} {self.stage.name}"
        # None: shown on a terminal only, not in a log.
        hidden = None if runtime.is_main else True
        with tqdm(batches, title, self.steps, initial=progress.step, leave=False, disable=hidden) as bar:
            for step, batch in enumerate(bar, progress.step):
                # Each process draws its own dropout, independent of earlier draws.
                torch.manual_seed(derived_seed(settings.seed, progress.epoch, step, runtime.rank))
                total += train_step(
                    self.network,
                    self.learner.loss,
                    runtime.to_device(batch),
                    self.optimizer,
                    runtime,
                    clip=settings.clip,
                )
                self.schedule.step()
                # Reading the sum synchronises the CPU with the GPU: not at each step.
                if step % 10 == 0 or step + 1 == self.steps or settings.checkpoint_steps:
                    progress = replace(progress, step=step + 1, loss=float(total))
                    self._check_loss(progress)
                    mean = progress.loss / progress.step
                    bar.set_postfix(loss=f"{mean:.4f}", rate=f"{self.rate:.1e}", refresh=False)
                    yield progress

    @property
    def rate(self) -> float:
        """The learning rate of the fastest group."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def _check_loss(self, progress: Progress) -> None:
        if not math.isfinite(progress.loss):
            raise CannotTrain(
                f"The loss became infinite or NaN in epoch {progress.epoch + 1}; train with a lower --rate than "
                f"{self.stage.rate:g}."
            )


def _finish_epoch(
    learner: Trainable,
    network: nn.Module,
    run: _StageRun,
    progress: Progress,
    started: float,
    runtime: Runtime,
    folder: Path,
) -> tuple[EpochLog, Progress]:
    """Validate after an epoch, and save the weights if they are the best so far."""
    train_seconds = time.perf_counter() - started
    mean_loss = torch.tensor(progress.loss / progress.step, device=runtime.device)
    loss = runtime.all_reduce_sum(mean_loss) / runtime.world_size
    scores = learner.scores(network, runtime)
    score = next(iter(scores.values())) * (-1 if learner.lower_is_better else 1)
    # On a small validation set, epochs often have equal scores.
    validation_loss = scores.get("loss", float(loss))
    is_best = progress.is_improved_by(score, validation_loss)
    if is_best and runtime.is_main:
        checkpoint.save(folder / checkpoint.BEST, {"network": network.state_dict(), "scores": scores})
    log = EpochLog(
        epoch=progress.epoch + 1,
        stage=run.stage.name,
        loss=float(loss),
        rate=run.rate,
        seconds=time.perf_counter() - started,
        samples_per_second=progress.step * run.settings.batch_size / train_seconds,
        scores=scores,
    )
    best = (_or_worst(score), validation_loss) if is_best else (progress.best, progress.best_loss)
    return log, Progress(epoch=progress.epoch + 1, best=best[0], best_loss=best[1])


def _save(
    last: Path, network: nn.Module, run: _StageRun, progress: Progress, history: list[EpochLog], runtime: Runtime
) -> None:
    if runtime.is_main:
        state = {
            "progress": asdict(progress),
            "history": [asdict(log) for log in history],
            "network": network.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "schedule": run.schedule.state_dict(),
        }
        checkpoint.save(last, state)
