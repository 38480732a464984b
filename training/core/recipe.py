"""Recipes: named data sets with their settings and the result to expect; found by file name, as learners are."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.core.config import Settings
from training.core.sources import Source


@dataclass(frozen=True)
class DataCard:
    """What a card must say of the data.

    Attributes:
        redistributable: goldens may hold samples of it.
        binds: what is made of it may be passed on under the data's own licence only.
    """

    name: str
    licence: str
    address: str = ""
    redistributable: bool = False
    binds: bool = False
    description: str = ""


@dataclass(frozen=True)
class Scale:
    """Settings and options that belong together, for machines of one kind."""

    settings: Settings
    options: Any


@dataclass(frozen=True)
class Recipe:
    """A named data set, how to train on it, and what to expect.

    Attributes:
        name: of the recipe and of the model.
        task: whose learner trains it.
        expected: the result and the time it takes, in words.
        prepare: makes what the learner reads, in a new folder, from what was fetched; None: that is it already.
        cpu_caveats: of a model that was made with the settings for a CPU.
        on_gpu: the settings and options where there is a GPU; None: the same as on a CPU.
        limits: what the published model must reach: a metric's name and its least value.
        ceilings: the same for errors: a metric's name and its largest value.
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
    intended_use: str = ""
    out_of_scope: str = ""
    caveats: tuple[str, ...] = ()
    cpu_caveats: tuple[str, ...] = ()
    prepare: Callable[[Path, Path], None] | None = None
    on_gpu: Scale | None = None
    limits: tuple[tuple[str, float], ...] = ()
    ceilings: tuple[tuple[str, float], ...] = ()


def scaled(found: Recipe, *, gpu: bool) -> Recipe:
    """The recipe with the settings for this machine."""
    if not gpu or found.on_gpu is None:
        return replace(found, caveats=(*found.caveats, *found.cpu_caveats), cpu_caveats=())
    return replace(found, settings=found.on_gpu.settings, options=found.on_gpu.options)
