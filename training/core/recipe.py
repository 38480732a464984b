"""Recipes: named data sets with their settings and the expected result; found by file name, as learners are."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.core.config import Settings
from training.core.sources import Source


@dataclass(frozen=True)
class DataCard:
    """Facts about the data that a model card states.

    Attributes:
        redistributable: whether goldens may contain samples of the data.
        share_alike: whether works derived from the data may be passed on under the data's own licence only.
    """

    name: str
    licence: str
    address: str = ""
    redistributable: bool = False
    share_alike: bool = False
    description: str = ""


@dataclass(frozen=True)
class Preset:
    """Settings and options that belong together, for one kind of machine."""

    settings: Settings
    options: Any


@dataclass(frozen=True)
class Recipe:
    """A named data set, how to train on it, and what to expect.

    Attributes:
        name: name of the recipe and of the model.
        task: the task whose learner trains it.
        description: what the model is for, in the words of the user who trains on data of their own.
        expected: the result and the training time to expect, in words.
        prepare: writes what the learner reads into a new folder, from the folder that was fetched; None: the learner
            reads the fetched folder itself.
        cpu_caveats: caveats of a model that was trained with the settings for a CPU.
        on_gpu: settings and options if there is a GPU; None: the same as on a CPU.
        min_metrics: (metric name, minimum value) pairs that a model must reach to be published.
        max_metrics: (metric name, maximum value) pairs, for errors.
    """

    name: str
    task: str
    title: str
    summary: str
    expected: str
    source: Source | None
    data: DataCard
    settings: Settings
    options: Any
    description: str = ""
    intended_use: str = ""
    out_of_scope: str = ""
    caveats: tuple[str, ...] = ()
    cpu_caveats: tuple[str, ...] = ()
    prepare: Callable[[Path, Path], None] | None = None
    on_gpu: Preset | None = None
    min_metrics: tuple[tuple[str, float], ...] = ()
    max_metrics: tuple[tuple[str, float], ...] = ()


def select_preset(recipe: Recipe, *, gpu: bool) -> Recipe:
    """Return the recipe with the settings for this machine."""
    if not gpu or recipe.on_gpu is None:
        return replace(recipe, caveats=(*recipe.caveats, *recipe.cpu_caveats), cpu_caveats=())
    return replace(recipe, settings=recipe.on_gpu.settings, options=recipe.on_gpu.options)
