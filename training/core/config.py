"""Settings of a training run as frozen dataclasses, and the command-line options made from them."""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, TypeVar

Config = TypeVar("Config")


@dataclass(frozen=True)
class Range:
    """The numbers that an option may have; None: no limit."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            -math.inf < value < math.inf
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        limits = (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        )
        return " and ".join(f"{words} {limit:g}" for words, limit in limits if limit is not None)


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field that is also a command-line option.

    A number may have limits. A default of None is that of a switch, yes or no, that may be left open.
    """
    limits = Range(at_least, at_most, above, below)
    return field(default=default, metadata={"help": help, "choices": choices, "range": limits})


@dataclass(frozen=True)
class Settings:
    """How a network is trained, whatever its task. Learning rates are the peaks of one-cycle schedules."""

    epochs: int = option(5, "epochs in which the whole network is trained", at_least=1)
    batch_size: int = option(32, "samples per step, over all processes", at_least=1)
    rate: float = option(2e-3, "peak learning rate (of the last layers)", above=0)
    weight_decay: float = option(0.01, "weight decay; not applied to norms and biases", at_least=0)
    clip: float = option(1.0, "maximum norm of the gradient; 0 = no clipping", at_least=0)
    label_smoothing: float = option(0.1, "fraction of the target that is spread over all classes", at_least=0, below=1)
    seed: int = option(0, "random seed; all random choices follow from it", at_least=0)
    seeds: int = option(1, "number of runs, with seeds SEED, SEED+1, …; the first is published", at_least=1)
    precision: str = option("auto", "precision of the arithmetic in training", choices=("auto", "fp32", "bf16"))
    device: str = option("auto", "device to train on", choices=("auto", "cpu", "cuda"))
    threads: int = option(0, "CPU threads; 0 = one per core", at_least=0)
    workers: int = option(-1, "processes that prepare batches; -1 = chosen by device", at_least=-1)
    checkpoint_steps: int = option(0, "steps between additional checkpoints; 0 = only after each epoch", at_least=0)


def add_options(parser: argparse.ArgumentParser, config: Any, title: str) -> None:
    """Add a command-line option for each field that was declared by `option`; `config` holds the defaults."""
    group = parser.add_argument_group(title)
    for item in option_fields(config):
        default = getattr(config, item.name)
        flag = "--" + item.name.replace("_", "-")
        limits = f", {item.metadata['range']}" if str(item.metadata["range"]) else ""
        text = f"{item.metadata['help']}{limits} (default: {_format_default(default)})"
        keywords: dict[str, Any] = {"dest": item.name, "default": default, "help": text.replace("%", "%%")}
        if isinstance(default, bool) or default is None:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **keywords)
        elif item.metadata["choices"]:
            choices = "{" + ",".join(item.metadata["choices"]) + "}"
            group.add_argument(flag, type=_parser_of(item), metavar=choices, **keywords)
        else:
            metavar = "A,B" if isinstance(default, tuple) else type(default).__name__.upper()
            group.add_argument(flag, type=_parser_of(item), metavar=metavar, **keywords)


def option_fields(config: Any) -> list[Field[Any]]:
    """Return the fields that were declared by `option`."""
    return [item for item in fields(config) if "help" in item.metadata]


def describe_values(item: Field[Any]) -> str:
    """Say which values an option may have, such as `a whole number of at least 1`."""
    limits = str(item.metadata["range"])
    limits = f" of {limits}" if limits.startswith("at") else f" {limits}".rstrip()
    if item.metadata["choices"]:
        *others, last = item.metadata["choices"]
        return f"{', '.join(others)} or {last}"
    if isinstance(item.default, bool) or item.default is None:
        return "true or false"
    if isinstance(item.default, tuple):
        return "a list of texts"
    if isinstance(item.default, int):
        return f"a whole number{limits}"
    return f"a number{limits}" if isinstance(item.default, float) else "a text"


def is_valid(item: Field[Any], value: Any) -> bool:
    """Whether an option may have this value. A whole number is also valid where any number is."""
    default, choices = item.default, item.metadata["choices"]
    if default is None:
        return value is None or isinstance(value, bool)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if isinstance(default, int | float):
        return isinstance(value, int if isinstance(default, int) else (int, float)) and value in item.metadata["range"]
    return isinstance(value, str) and (not choices or value in choices)


def _parser_of(item: Field[Any]) -> Callable[[str], Any]:
    """Return the function that reads an option's value from a command line; it raises ArgumentTypeError."""
    kind: Any = _split_commas if isinstance(item.default, tuple) else type(item.default)

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if not is_valid(item, value):
            raise argparse.ArgumentTypeError(f"'{text}' is not {describe_values(item)}")
        return value

    return parse


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


def overlay(config: Config, values: Mapping[str, Any]) -> Config:
    """Return `config` with those of the values that it has a field for."""
    names = {item.name for item in fields(config)}  # type: ignore[arg-type]
    given = {name: value for name, value in values.items() if name in names}
    return replace(config, **given)  # type: ignore[type-var]
