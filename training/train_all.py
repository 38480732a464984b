"""Every recipe, one after the other: what `python -m training all` does. It can be stopped and goes on where it was."""

import argparse
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.core.errors import CannotTrain, NoData
from training.core.recipe import Recipe
from training.reporting import run_folder

ALL = "all"

Train = Callable[[Recipe, list[str]], Path | None]
"""Trains a recipe with these options of the command line; the run's folder. Raises CannotTrain, NoData."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class RecipeResult:
    """What became of a recipe: its first figure and what was published, or why not."""

    recipe: str
    outcome: Literal["done", "skipped", "failed"]
    minutes: float
    figure: str = ""
    version: str = ""
    reason: str = ""


def train_all(recipes: Iterable[Recipe], chosen: argparse.Namespace, train: Train, say: Say = print) -> int:
    """Trains each recipe, says at the end what became of each, and gives the status to exit with.

    A recipe whose data is nowhere to be had is skipped. One that fails does not stop the others; the status is then 1,
    as it is where no recipe could be trained. Raises CannotTrain under torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CannotTrain("All recipes are trained by one process: start it without torchrun.")
    options = forwarded_options(chosen)
    rows = []
    for recipe in recipes:
        say(f"\n=== {recipe.name}: {recipe.summary}")
        rows.append(_made(recipe, options, chosen, train))
        if rows[-1].reason:
            say(f"{rows[-1].outcome}: {rows[-1].reason}")
    say("\n" + "\n".join(summary_table(rows)))
    return int(any(row.outcome == "failed" for row in rows) or all(row.outcome == "skipped" for row in rows))


def forwarded_options(chosen: argparse.Namespace) -> list[str]:
    """The options that each recipe gets: those of the command line, and --keep."""
    words = ["--keep"]
    for name, value in vars(chosen).items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value not in (None, False, ""):
            words += [flag, str(value)]
    return words


def _made(recipe: Recipe, options: list[str], chosen: argparse.Namespace, train: Train) -> RecipeResult:
    began = time.monotonic()

    def row(outcome: Literal["done", "skipped", "failed"], **more: str) -> RecipeResult:
        return RecipeResult(recipe.name, outcome, (time.monotonic() - began) / 60, **more)

    if recipe.source is None:
        return row("skipped", reason="its data cannot be fetched: train it by itself, with --data.")
    try:
        folder = train(recipe, options)
    except NoData as error:
        return row("skipped", reason=str(error))
    except CannotTrain as error:
        return row("failed", reason=str(error))
    except Exception as error:  # A fault of one recipe's code; the others are trained, and the fault is kept.
        file = Path(chosen.runs) / f"{recipe.name}-failed.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(traceback.format_exc(), encoding="utf-8")
        return row("failed", reason=f"{type(error).__name__}: {error} (where it happened: {file})")
    if folder is None:
        return row("done")
    figures = run_folder.read_metrics(folder)
    first = next(iter(figures.items()), None)
    version = run_folder.published_version(folder, Path(chosen.models)) if chosen.publish else ""
    return row("done", figure=f"{first[0]} {first[1]:.4f}" if first else "", version=version)


def summary_table(rows: Sequence[RecipeResult]) -> list[str]:
    """The rows in columns."""
    cells = [("recipe", "first figure", "minutes", "version, or why there is none")]
    cells += [(row.recipe, row.figure or "–", f"{row.minutes:.1f}", row.version or _why(row)) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, (*widths, 0), strict=True)) for line in cells]


def _why(row: RecipeResult) -> str:
    return f"{row.outcome}: {row.reason}" if row.reason else "not published"
