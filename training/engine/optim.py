"""The optimiser with its parameter groups, and the one-cycle schedule of learning rates."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR


@dataclass(frozen=True)
class ParamGroup:
    """Parameters whose learning rate is `scale` times that of the last layers."""

    parameters: tuple[nn.Parameter, ...]
    scale: float = 1.0


def make_optimizer(groups: Iterable[ParamGroup], rate: float, weight_decay: float) -> AdamW:
    """Return AdamW, without weight decay for one-dimensional parameters (norms and biases)."""
    param_groups = []
    for group in groups:
        for decays in (True, False):
            parameters = [p for p in group.parameters if p.requires_grad and (p.ndim > 1) == decays]
            if parameters:
                decay = weight_decay if decays else 0.0
                param_groups.append({"params": parameters, "lr": rate * group.scale, "weight_decay": decay})
    return AdamW(param_groups, lr=rate, betas=(0.9, 0.99))


def one_cycle_schedule(optimizer: Optimizer, steps: int) -> OneCycleLR:
    """Return a schedule that rises from 1/25 of each group's rate in the first 30 % of the steps, then falls to near 0.

    Momentum runs the other way, 0.95 → 0.85 → 0.95 (Smith 2018, "A disciplined approach…").
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    # With fewer than four steps, OneCycleLR has no room for the rise and divides by zero.
    return OneCycleLR(optimizer, rates, total_steps=max(4, steps), pct_start=0.3)
