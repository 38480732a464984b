"""The learning-rate finder: train with a rising rate for a few batches, and suggest a rate."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from training.engine.loop import Loss, train_step
from training.engine.runtime import Batch, Runtime


@dataclass(frozen=True)
class RateSearch:
    """The result of a sweep over learning rates: rates, smoothed losses, and the suggested rate."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


def find_rate(
    network: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    runtime: Runtime,
    *,
    clip: float = 0.0,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
) -> RateSearch:
    """Train with a rate that grows from `low` to `high`, until the smoothed loss exceeds four times its minimum.

    The steps are those of training, with its precision and its clipping of gradients: a rate found otherwise would not
    suit it.
    The suggestion is the rate at which the loss falls most steeply (Smith 2015). Network and optimiser, buffers
    included, are restored afterwards; each group keeps its rate relative to the fastest one.
    """
    saved = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    was_training = network.training
    fastest = max(group["lr"] for group in optimizer.param_groups)
    scales = [group["lr"] / fastest for group in optimizer.param_groups]
    network.train()
    rates: list[float] = []
    losses: list[float] = []
    average, minimum = 0.0, math.inf
    for step, batch in zip(range(steps), batches, strict=False):
        rate = low * (high / low) ** (step / max(1, steps - 1))
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        # The mean over all processes: each must stop at the same step, or the others would wait for it forever.
        local = train_step(network, loss, batch, optimizer, runtime, clip=clip).double()
        value = float(runtime.all_reduce_sum(local)) / runtime.world_size
        average = 0.9 * average + 0.1 * value
        smoothed = average / (1 - 0.9 ** (step + 1))  # Corrects the bias of starting from 0.
        if not math.isfinite(smoothed) or smoothed > 4 * minimum:
            break
        minimum = min(minimum, smoothed)
        rates.append(rate)
        losses.append(smoothed)
    network.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    network.train(was_training)
    return RateSearch(tuple(rates), tuple(losses), _steepest_rate(rates, losses))


def _steepest_rate(rates: list[float], losses: list[float]) -> float:
    """The rate where the loss falls fastest per decade, before its minimum."""
    end = losses.index(min(losses)) + 1
    if end < 4:
        return rates[max(0, end - 1)] / 10
    slopes = torch.gradient(torch.tensor(losses[:end]), spacing=(torch.tensor(rates[:end]).log(),))[0]
    return rates[int(slopes[1:].argmin()) + 1]
