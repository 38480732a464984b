"""The learning-rate finder: a sweep over rates on the first batches, and the rate it suggests."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.engine.runtime import Batch


@dataclass(frozen=True)
class RateSearch:
    """What a sweep over learning rates saw: the rates, the smoothed losses, and the rate it suggests."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


def find_rate(
    network: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    optimizer: Optimizer,
    batches: Iterator[Batch],
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
) -> RateSearch:
    """Trains with a rate that grows from `low` to `high`, until the smoothed loss is four times the least one.

    The suggestion is the rate at which the loss falls most steeply (Smith 2015). Network and optimiser are afterwards
    as they were before, buffers included; each group keeps its rate relative to the fastest one.
    """
    kept = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    training = network.training
    fastest = max(group["lr"] for group in optimizer.param_groups)
    scales = [group["lr"] / fastest for group in optimizer.param_groups]
    network.train()
    rates: list[float] = []
    losses: list[float] = []
    average, least = 0.0, math.inf
    for step, batch in zip(range(steps), batches, strict=False):
        rate = low * (high / low) ** (step / max(1, steps - 1))
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        value = _step(network, loss, optimizer, batch)
        average = 0.9 * average + 0.1 * value
        smoothed = average / (1 - 0.9 ** (step + 1))  # Without the bias of starting from 0.
        if not math.isfinite(smoothed) or smoothed > 4 * least:
            break
        least = min(least, smoothed)
        rates.append(rate)
        losses.append(smoothed)
    network.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    network.train(training)
    return RateSearch(tuple(rates), tuple(losses), _steepest(rates, losses))


def _step(network: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], optimizer: Optimizer, batch: Batch) -> float:
    optimizer.zero_grad(set_to_none=True)
    value = loss(network, batch)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(value.detach())


def _steepest(rates: list[float], losses: list[float]) -> float:
    """The rate where the loss falls fastest per decade, before its least value."""
    end = losses.index(min(losses)) + 1
    if end < 4:
        return rates[max(0, end - 1)] / 10
    slopes = torch.gradient(torch.tensor(losses[:end]), spacing=(torch.tensor(rates[:end]).log(),))[0]
    return rates[int(slopes[1:].argmin()) + 1]
