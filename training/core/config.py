"""Settings of a training run as frozen dataclasses, and the command-line options made from them."""

import argparse
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

Config = TypeVar("Config")


def option(default: Any, help: str, *, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field that is also a command-line option.

    A default of None is that of a switch, yes or no, that may be left open.
    """
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """How a network is trained, whatever its task. Learning rates are the peaks of one-cycle schedules."""

    epochs: int = option(5, "epochs in which the whole network is trained")
    batch_size: int = option(32, "samples per step, over all processes")
    rate: float = option(2e-3, "peak learning rate (of the last layers)")
    weight_decay: float = option(0.01, "weight decay; not applied to norms and biases")
    clip: float = option(1.0, "maximum norm of the gradient; 0 = no clipping")
    label_smoothing: float = option(0.1, "fraction of the target that is spread over all classes")
    seed: int = option(0, "random seed; all random choices follow from it")
    seeds: int = option(1, "number of runs, with seeds SEED, SEED+1, …; the first is published")
    precision: str = option("auto", "precision of the arithmetic in training", choices=("auto", "fp32", "bf16"))
    device: str = option("auto", "device to train on", choices=("auto", "cpu", "cuda"))
    threads: int = option(0, "CPU threads; 0 = one per core")
    workers: int = option(-1, "processes that prepare batches; -1 = chosen by device")
    checkpoint_steps: int = option(0, "steps between additional checkpoints; 0 = only after each epoch")


def add_options(parser: argparse.ArgumentParser, config: Any, title: str) -> None:
    """Add a command-line option for each field that was declared by `option`; `config` holds the defaults."""
    group = parser.add_argument_group(title)
    for item in fields(config):
        if "help" not in item.metadata:
            continue
        default = getattr(config, item.name)
        flag = "--" + item.name.replace("_", "-")
        text = f"{item.metadata['help']} (default: {_format_default(default)})"
        keywords: dict[str, Any] = {"dest": item.name, "default": default, "help": text.replace("%", "%%")}
        if isinstance(default, bool) or default is None:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **keywords)
        elif isinstance(default, tuple):
            group.add_argument(flag, type=_split_commas, metavar="A,B", **keywords)
        elif item.metadata["choices"]:
            group.add_argument(flag, choices=item.metadata["choices"], **keywords)
        else:
            group.add_argument(flag, type=type(default), metavar=type(default).__name__.upper(), **keywords)


def _format_default(default: Any) -> str:
    if default is None:
        return "left open"
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ",".join(default) or "none"
    return str(default) or "none"


def _split_commas(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def overlay(config: Config, arguments: argparse.Namespace) -> Config:
    """Return `config` with the values that the command line gave."""
    names = {item.name for item in fields(config)}  # type: ignore[arg-type]
    given = {name: value for name, value in vars(arguments).items() if name in names}
    return replace(config, **given)  # type: ignore[type-var]
