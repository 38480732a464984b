"""Learning rates: groups of parameters, the one-cycle schedule, and the search for a good rate."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that learn `scale` times as fast as the last layers."""

    parameters: tuple[nn.Parameter, ...]
    scale: float = 1.0


def optimiser(groups: Iterable[ParamGroup], rate: float, weight_decay: float) -> AdamW:
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
