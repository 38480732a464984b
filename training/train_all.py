"""Train all recipes one after another: `python -m training all`. The same command resumes after an interruption."""

import argparse
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.system_errors import describe_os_error
from training.core.errors import CannotTrain, NoData
from training.core.files import write_file
from training.core.recipe import Recipe
from training.reporting import run_folder

ALL = "all"

Train = Callable[[Recipe, list[str]], Path | None]
"""Trains a recipe with these command-line options; returns the run folder. Raises CannotTrain, NoData."""
Log = Callable[[str], None]


@dataclass(frozen=True)
class RecipeResult:
    """Result of one recipe: main metric, published version, or the reason it was skipped."""

    recipe: str
    outcome: Literal["done", "skipped", "failed"]
    minutes: float
    metric: str = ""
    version: str = ""
    reason: str = ""


def train_all(recipes: Iterable[Recipe], arguments: argparse.Namespace, train: Train, log: Log = print) -> int:
    """Train each recipe, log a summary, and return the exit status.

    A recipe whose data is unavailable is skipped. A recipe that fails does not stop the others. The status is 1 if a
    recipe failed or none could be trained. Raises CannotTrain under torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CannotTrain("`all` trains in one process: start it without torchrun.")
    options = forwarded_options(arguments)
    results = []
    for recipe in recipes:
        log(f"\n=== {recipe.name}: {recipe.summary}")
        results.append(_train_recipe(recipe, options, arguments, train))
        if results[-1].reason:
            log(f"{results[-1].outcome}: {results[-1].reason}")
    log("\n" + "\n".join(summary_table(results)))
    outcomes = [result.outcome for result in results]
    return int("failed" in outcomes or all(outcome == "skipped" for outcome in outcomes))


def forwarded_options(arguments: argparse.Namespace) -> list[str]:
    """Return the options that each recipe gets: those of the command line, and --keep."""
    words = ["--keep"]
    for name, value in vars(arguments).items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif value not in (None, False, ""):
            words += [flag, str(value)]
    return words


def _train_recipe(recipe: Recipe, options: list[str], arguments: argparse.Namespace, train: Train) -> RecipeResult:
    started = time.monotonic()

    def result(outcome: Literal["done", "skipped", "failed"], **details: str) -> RecipeResult:
        return RecipeResult(recipe.name, outcome, (time.monotonic() - started) / 60, **details)

    if recipe.source is None:
        return result("skipped", reason="its data cannot be downloaded; train it separately, with --data.")
    try:
        folder = train(recipe, options)
    except NoData as error:
        return result("skipped", reason=str(error))
    except CannotTrain as error:
        return result("failed", reason=str(error))
    except OSError as error:
        return result("failed", reason=describe_os_error(error))
    except Exception as error:  # A bug in one recipe must not stop the others; the traceback is saved.
        file = Path(arguments.runs) / f"{recipe.name}-failed.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, traceback.format_exc())
        return result("failed", reason=f"{type(error).__name__}: {error} (traceback: {file})")
    if folder is None:
        return result("done")
    first = next(iter(run_folder.read_metrics(folder).items()), None)
    version = run_folder.published_version(folder, Path(arguments.models)) if arguments.publish else ""
    return result("done", metric=f"{first[0]} {first[1]:.4f}" if first else "", version=version)


def summary_table(results: Sequence[RecipeResult]) -> list[str]:
    """Format the results as lines with aligned columns."""
    cells = [("recipe", "main metric", "minutes", "published version")]
    cells += [
        (result.recipe, result.metric or "–", f"{result.minutes:.1f}", result.version or _why_no_version(result))
        for result in results
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, (*widths, 0), strict=True)) for line in cells]


def _why_no_version(result: RecipeResult) -> str:
    return f"{result.outcome}: {result.reason}" if result.reason else "not published"
