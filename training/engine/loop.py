"""The training loop: stages of epochs, epochs of steps; what was trained survives a kill at any moment.

The randomness of step k follows from the seed and k, the order of an epoch from the seed and the epoch. So a run that
is resumed from a checkpoint takes the very steps that an unbroken one takes, and no generator's state is kept.
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
from training.engine.batches import derived_seed, loader
from training.engine.learner import Stage, Trainable
from training.engine.optim import one_cycle, optimiser
from training.engine.runtime import Batch, Runtime

Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Progress:
    """Where training stands: `step` steps into `epoch`, with the sum of their losses, and the best score so far.

    The score is the first of the learner's, negative where lower is better.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    best: float = -math.inf


def train_step(
    network: nn.Module, loss: Loss, batch: Batch, optimizer: Optimizer, runtime: Runtime, *, clip: float
) -> Tensor:
    """Forward, loss, backward, step. Returns the loss, detached."""
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
    """Trains the network in place and yields a row an epoch; at the end it has its best weights.

    Checkpoints lie in `folder`. Where one is there already, its rows are yielded and training goes on from it.
    """
    last = folder / checkpoint.LAST
    kept = checkpoint.load(last) if last.exists() else None
    history = [EpochLog(**row) for row in kept["history"]] if kept else []
    place = Progress(**kept["place"]) if kept else Progress()
    yield from history
    network.to(runtime.device)
    if kept:
        network.load_state_dict(kept["network"])
    first, stages = 0, learner.stages()
    for stage in stages:
        end = first + stage.epochs
        if place.epoch < end:
            begun = kept if kept and (place.epoch, place.step) > (first, 0) else None
            run = _Stage(learner, network, stage, settings, runtime, begun)
            while place.epoch < end:
                started = time.perf_counter()
                for reached in run.epoch(place, sum(each.epochs for each in stages), workers):
                    place = reached
                    if settings.checkpoint_steps and place.step % settings.checkpoint_steps == 0:
                        _save(last, network, run, place, history, runtime)
                row, place = _close(learner, network, run, place, started, runtime, folder)
                history.append(row)
                _save(last, network, run, place, history, runtime)
                yield row
        first = end
    runtime.barrier()  # Until the first process has written the best weights.
    network.load_state_dict(checkpoint.load(folder / checkpoint.BEST)["network"])


class _Stage:
    """A stage under way: the network as it is trained, its optimiser and its schedule."""

    def __init__(
        self,
        learner: Trainable,
        network: nn.Module,
        stage: Stage,
        settings: Settings,
        runtime: Runtime,
        kept: dict[str, Any] | None,
    ) -> None:
        self.learner, self.stage, self.settings, self.runtime = learner, stage, settings, runtime
        self.steps = learner.samples.steps(settings.batch_size)
        self.optimizer = optimiser(learner.groups(network, stage), stage.rate, settings.weight_decay)
        self.schedule: LRScheduler = one_cycle(self.optimizer, self.steps * stage.epochs)
        self.network = runtime.parallel(network)
        if kept:
            self.optimizer.load_state_dict(kept["optimizer"])
            self.schedule.load_state_dict(kept["schedule"])

    def epoch(self, place: Progress, epochs: int, workers: int) -> Iterator[Progress]:
        """Takes the steps of an epoch that remain from `place` on, and yields how far it is now and then."""
        settings, runtime, samples = self.settings, self.runtime, self.learner.samples
        keys = samples.batch_keys(
            settings.batch_size,
            seed=settings.seed,
            epoch=place.epoch,
            rank=runtime.rank,
            world=runtime.world,
        )
        batches = loader(samples, keys[place.step :], runtime, workers=workers)
        self.network.train()
        total = torch.tensor(place.loss, dtype=torch.float64, device=runtime.device)
        title = f"epoch {place.epoch + 1}/{epochs} {self.stage.name}"
        # None: shown on a terminal, and not in a log.
        hidden = None if runtime.is_main else True
        with tqdm(batches, title, self.steps, initial=place.step, leave=False, disable=hidden) as bar:
            for step, batch in enumerate(bar, place.step):
                # Each process draws its own dropout, whatever drew before it.
                torch.manual_seed(derived_seed(settings.seed, place.epoch, step, runtime.rank))
                total += train_step(
                    self.network,
                    self.learner.loss,
                    runtime.move(batch),
                    self.optimizer,
                    runtime,
                    clip=settings.clip,
                )
                self.schedule.step()
                # Reading the sum makes the CPU wait for a GPU: not at each step.
                if step % 10 == 0 or step + 1 == self.steps or settings.checkpoint_steps:
                    place = replace(place, step=step + 1, loss=float(total))
                    self._check(place)
                    bar.set_postfix(loss=f"{place.loss / place.step:.4f}", rate=f"{self.rate:.1e}", refresh=False)
                    yield place

    @property
    def rate(self) -> float:
        """The learning rate of the fastest group."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def _check(self, place: Progress) -> None:
        if not math.isfinite(place.loss):
            rate = self.stage.rate
            raise CannotTrain(
                f"The loss is no longer a number in epoch {place.epoch + 1}: train with a lower --rate than {rate:g}."
            )


def _close(
    learner: Trainable, network: nn.Module, run: _Stage, place: Progress, started: float, runtime: Runtime, folder: Path
) -> tuple[EpochLog, Progress]:
    """Validates after an epoch, and keeps the weights where they are the best so far."""
    trained = time.perf_counter() - started
    loss = runtime.all_reduce_sum(torch.tensor(place.loss / place.step, device=runtime.device)) / runtime.world
    scores = learner.scores(network, runtime)
    score = next(iter(scores.values())) * (-1 if learner.lower_is_better else 1)
    if score > place.best and runtime.is_main:
        checkpoint.save(folder / checkpoint.BEST, {"network": network.state_dict(), "scores": scores})
    row = EpochLog(
        epoch=place.epoch + 1,
        stage=run.stage.name,
        loss=float(loss),
        rate=run.rate,
        seconds=time.perf_counter() - started,
        samples_per_second=place.step * run.settings.batch_size / trained,
        scores=scores,
    )
    return row, Progress(epoch=place.epoch + 1, best=max(score, place.best))


def _save(
    last: Path, network: nn.Module, run: _Stage, place: Progress, history: list[EpochLog], runtime: Runtime
) -> None:
    if runtime.is_main:
        state = {
            "place": asdict(place),
            "history": [asdict(row) for row in history],
            "network": network.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "schedule": run.schedule.state_dict(),
        }
        checkpoint.save(last, state)
