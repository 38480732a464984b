"""The settings of a training run as frozen values, and the command line's options made from them."""

import argparse
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

Values = TypeVar("Values")


def option(default: Any, explanation: str, *, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field that is also an option of the command line."""
    return field(default=default, metadata={"help": explanation, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """How a network is trained, whatever its task. The learning rates are the peaks of one-cycle schedules."""

    epochs: int = option(5, "epochs in which the whole network learns")
    batch_size: int = option(32, "samples a step, over all processes")
    rate: float = option(2e-3, "peak learning rate (of the last layers)")
    weight_decay: float = option(0.01, "weight decay; norms and biases have none")
    clip: float = option(1.0, "the gradient's norm is clipped to this; 0: not at all")
    label_smoothing: float = option(0.1, "share of the target that is spread over all classes")
    seed: int = option(0, "every random choice follows from it")
    seeds: int = option(1, "train this many times, from seed, seed+1, …; the first is published")
    precision: str = option("auto", "of the arithmetic in training", choices=("auto", "fp32", "bf16"))
    device: str = option("auto", "what to train on", choices=("auto", "cpu", "cuda"))
    threads: int = option(0, "CPU threads; 0: one a core")
    workers: int = option(-1, "processes that prepare batches; -1: as many as suit the device")
    checkpoint_steps: int = option(0, "also write a checkpoint every so many steps; 0: after each epoch only")


def add_options(parser: argparse.ArgumentParser, values: Any, title: str) -> None:
    """Adds an option for each field that was declared by `option`, with `values` as the defaults."""
    group = parser.add_argument_group(title)
    for each in fields(values):
        if "help" not in each.metadata:
            continue
        default = getattr(values, each.name)
        flag, shown = "--" + each.name.replace("_", "-"), each.metadata["help"] + f" (default: {_shown(default)})"
        extra: dict[str, Any] = {"dest": each.name, "default": default, "help": shown.replace("%", "%%")}
        if isinstance(default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **extra)
        elif isinstance(default, tuple):
            group.add_argument(flag, type=_listed, metavar="A,B", **extra)
        elif each.metadata["choices"]:
            group.add_argument(flag, choices=each.metadata["choices"], **extra)
        else:
            group.add_argument(flag, type=type(default), metavar=type(default).__name__.upper(), **extra)


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ",".join(default) or "none"
    return str(default) or "none"


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def overlay(values: Values, chosen: argparse.Namespace) -> Values:
    """The values, with those that the command line gave."""
    names = {each.name for each in fields(values)}  # type: ignore[arg-type]
    return replace(values, **{name: value for name, value in vars(chosen).items() if name in names})  # type: ignore[type-var]
