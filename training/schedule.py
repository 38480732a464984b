"""Learning rates: groups of parameters, the one-cycle schedule, and the search for a good rate."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from training.runtime import Batch


@dataclass(frozen=True)
class Group:
    """Parameters that learn `scale` times as fast as the last layers."""

    parameters: tuple[nn.Parameter, ...]
    scale: float = 1.0


def optimiser(groups: Iterable[Group], rate: float, weight_decay: float) -> AdamW:
    """AdamW, without weight decay on what has one dimension: norms and biases."""
    parts = []
    for group in groups:
        for decays in (True, False):
            chosen = [p for p in group.parameters if p.requires_grad and (p.ndim > 1) == decays]
            if chosen:
                decay = weight_decay if decays else 0.0
                parts.append({"params": chosen, "lr": rate * group.scale, "weight_decay": decay})
    return AdamW(parts, lr=rate, betas=(0.9, 0.99))


def one_cycle(optimizer: Optimizer, steps: int) -> OneCycleLR:
    """Up from a 25th of each group's rate in the first 30 % of the steps, down to nearly nothing in the rest.

    Momentum runs the other way, 0.95 → 0.85 → 0.95 (Smith 2018, "A disciplined approach…").
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    # Shorter than four steps it would have no room for a rise, and divide by zero.
    return OneCycleLR(optimizer, rates, total_steps=max(4, steps), pct_start=0.3)


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
