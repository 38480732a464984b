"""Command lines in the words that people type: other names of options, near names, and one sentence for a mistake."""

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tasks.near_names import nearest_name
from training.core.errors import CannotTrain

_ALIASES = {
    "backbone": ("arch", "architecture", "encoder", "model", "net", "network"),
    "batch-size": ("batch", "bs"),
    "clip": ("clip-grad", "clip-grad-norm", "grad-clip", "gradient-clip", "max-grad-norm"),
    "colours": ("colors",),
    "data": ("data-folder", "data-path", "dataset", "input"),
    "dropout": ("drop", "drop-rate"),
    "epochs": ("epoch", "max-epochs", "n-epochs", "num-epochs", "num-train-epochs"),
    "find-lr": ("lr-find", "lr-finder"),
    "label-smoothing": ("smoothing",),
    "licence": ("license",),
    "name": ("model-name",),
    "normalisation-pair": ("normalization-pair",),
    "rate": ("learning-rate", "lr", "max-lr"),
    "seed": ("manual-seed", "random-seed", "random-state"),
    "size": ("image-size", "img-size", "imgsz"),
    "target": ("target-col", "target-column"),
    "valid-fraction": (
        "val-fraction",
        "val-split",
        "valid-pct",
        "valid-share",
        "validation-fraction",
        "validation-split",
    ),
    "weight-decay": ("wd",),
    "weights": ("pretrained-weights",),
    "workers": ("num-workers",),
}
"""Other names of options with the same meaning, as other training programs have them."""
_DASHES = "-\N{EN DASH}\N{EM DASH}"
"""Word processors and chats turn two hyphens into a dash."""
_OPTION_OF_ALIAS = {alias: option for option, aliases in _ALIASES.items() for alias in aliases}
_PARTS_OF_OPTION = {"size": ("width", "height"), "train-size": ("crop-width", "crop-height")}
"""Options that stand for one of other tasks together."""
_HINTS = {
    **dict.fromkeys(("cpu",), "--device cpu trains on the CPU"),
    **dict.fromkeys(("cuda", "gpu", "gpus"), "a GPU is used if there is one, and --device cuda insists on it"),
    **dict.fromkeys(
        ("out", "out-dir", "output", "output-dir", "save-dir"),
        "--runs DIR is for checkpoints and reports, --models DIR for published models",
    ),
    **dict.fromkeys(("amp", "bf16", "fp16", "half", "mixed-precision"), "--precision chooses the arithmetic"),
    **dict.fromkeys(
        ("early-stopping", "patience"),
        "all --epochs are trained, and the weights of the best epoch are kept",
    ),
    **dict.fromkeys(("opt", "optim", "optimizer", "optimiser", "momentum"), "the optimiser is always AdamW"),
    **dict.fromkeys(
        ("lr-scheduler", "scheduler", "warmup", "warmup-epochs"),
        "the schedule is always one cycle, and --rate is its peak",
    ),
    **dict.fromkeys(("no-pretrained", "pretrained"), "--weights is imagenet, the path of a file, or none"),
    **dict.fromkeys(("force", "overwrite", "restart"), "--fresh starts a new run"),
}
"""What to do instead of options that other training programs have and this one has not."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are CannotTrain, in one sentence, and which reads no abbreviations by itself."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raise CannotTrain."""
        message = message.removeprefix("argument ").rstrip(".")
        name = message.partition(":")[0]
        if "ignored explicit argument" in message:
            message = f"{name} takes no value"
        raise CannotTrain(f"{message.replace('expected one argument', 'a value is missing')}.")

    @property
    def option_names(self) -> list[str]:
        """The names of all options, without their dashes."""
        names = (name for action in self._actions for name in action.option_strings)
        return [name[2:] for name in names if name.startswith("--")]


@dataclass(frozen=True)
class Vocabulary:
    """Which options a command has, to understand the names that people type.

    Attributes:
        command: what is trained, for messages, such as `classification`.
        names: the options of this command, without dashes.
        owners: returns the commands that have an option which this one has not; called for a mistake only.
    """

    command: str
    names: Sequence[str]
    owners: Callable[[str], Iterable[str]] = lambda _: ()
    _known: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", frozenset(self.names))

    def rewrite(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the words of a command line with the program's own names of options, and what was read otherwise.

        Raises CannotTrain if an option is unknown, or is given under two names.
        """
        rewritten: list[str] = []
        notes: list[str] = []
        typed: dict[str, str] = {}
        for number, word in enumerate(words):
            if word == "--":
                rewritten += words[number:]
                break
            name, equals, value = word.partition("=")
            if not _is_option(name) or name == "-h":
                rewritten.append(word)
                continue
            option = self._find(name)
            if typed.setdefault(option, name) != name:
                raise CannotTrain(f"{typed[option]} and {name} are the same option, {option}; give one of them.")
            if name != option and name.replace("_", "-") != option:
                notes.append(f"{name} is read as {option}.")
            rewritten.append(option + equals + value)
        return rewritten, notes

    def _find(self, typed: str) -> str:
        """Return the option, with its dashes, that a name with one dash or two stands for. Raises CannotTrain."""
        name = typed.lstrip(_DASHES).replace("_", "-")
        negation = "no-" if name.startswith("no-") and name not in self._known else ""
        alias = negation + _OPTION_OF_ALIAS.get(name.removeprefix("no-") if negation else name, "")
        for candidate in (name, alias):
            if candidate in self._known:
                return f"--{candidate}"
        is_other_word = name in _HINTS or name in _OPTION_OF_ALIAS or not typed.startswith("--")
        longer = [] if is_other_word else [known for known in self.names if known.startswith(name)]
        if len(longer) == 1:
            return f"--{longer[0]}"
        raise CannotTrain(self._describe_unknown(typed, name, longer))

    def _describe_unknown(self, typed: str, name: str, longer: Sequence[str]) -> str:
        missing = f"There is no option {typed}"
        if longer:
            return f"{missing}; did you mean {_join([f'--{known}' for known in longer])}?"
        if name in _HINTS:
            return f"{missing}: {_HINTS[name]}."
        option = _OPTION_OF_ALIAS.get(name, name)
        parts = [part for part in _PARTS_OF_OPTION.get(option, ()) if part in self._known]
        instead = f". Here, give {_join([f'--{part}' for part in parts], 'and')}" if parts else ""
        if owners := list(self.owners(option)):
            meant = "it" if option == name else f"--{option}"
            return f"{missing} for {self.command}; {meant} is an option of {_join(owners, 'and')}{instead}."
        if instead:
            return f"{missing} for {self.command}{instead}."
        candidates = {alias: known for alias, known in _OPTION_OF_ALIAS.items() if known in self._known}
        candidates |= {known: known for known in self.names}
        near = nearest_name(name, candidates) or next((part for part in _parts(name) if part in candidates), None)
        if near:
            return f"{missing}; did you mean --{candidates[near]}?"
        return f"{missing}; python -m training {self.command} --help lists them."


def _is_option(word: str) -> bool:
    """Whether a word is the name of an option, and not a negative number or another value."""
    letters = word.lstrip(_DASHES)
    return letters[:1].isalpha() and 1 <= len(word) - len(letters) <= 2


def _parts(name: str) -> list[str]:
    """Return the first and the last words of a name, the longest first: `epoch-count` has `epoch` and `count`."""
    words = name.split("-")
    return [part for n in range(len(words) - 1, 0, -1) for part in ("-".join(words[:n]), "-".join(words[-n:]))]


def _join(names: Sequence[str], last: str = "or") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def add_data_folders(group: Any) -> None:
    """Add --data-dir and --mirror."""
    group.add_argument(
        "--data-dir",
        default=os.environ.get("SEVENFOLD_DATA", ".data"),
        metavar="DIR",
        help="folder for downloaded data (default: $SEVENFOLD_DATA or .data)",
    )
    group.add_argument(
        "--mirror",
        default=os.environ.get("SEVENFOLD_MIRROR", ""),
        metavar="DIR|URL",
        help="folder or address to try before the official one (default: $SEVENFOLD_MIRROR)",
    )


def read_leftovers(arguments: argparse.Namespace, leftovers: Sequence[str], command: str) -> list[str]:
    """Read a path that was given without --data; return what was read otherwise. Raises CannotTrain for other words."""
    if not leftovers:
        return []
    first = leftovers[0]
    if len(leftovers) == 1 and getattr(arguments, "data", "") is None and (Path(first).exists() or os.sep in first):
        arguments.data = first
        return [f"{first} is read as --data {first}."]
    raise CannotTrain(
        f"'{first}' belongs to no option: python -m training {command} takes options only, such as --data PATH, and "
        "several values of one option are separated by commas."
    )
