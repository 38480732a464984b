"""Look up recipes and learners by name, and create a recipe for the user's own data."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from training import learners, recipes
from training.core.recipe import DataCard, Recipe
from training.engine.learner import Learner


def recipe_names() -> tuple[str, ...]:
    """Return the names of the files in training/recipes/."""
    return _module_names(recipes.__path__)


def learner_names() -> tuple[str, ...]:
    """Return the names of the folders in training/learners/, one per task."""
    return _module_names(learners.__path__)


def _module_names(path: Any) -> tuple[str, ...]:
    return tuple(sorted(module.name for module in iter_modules(path) if not module.name.startswith("_")))


def load_recipe(name: str) -> Recipe:
    """Import the recipe of this name, which is also its file's."""
    recipe: Recipe = import_module(f"training.recipes.{name}").RECIPE
    return recipe


def learner_type(task: str) -> type[Learner]:
    """Import the learner class of a task."""
    module = import_module(f"training.learners.{task}.learner")
    (learner,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Learner) and value.__module__ == module.__name__
    )
    return learner


def recipe_for(
    task: str, name: str, data: Path, licence: str = "unknown", *, title: str = "", description: str = ""
) -> Recipe:
    """Create a recipe for the user's own data, with the learner's defaults.

    What it states about the data is published: only the name of the file or folder, not where it is.
    """
    learner = learner_type(task)
    return Recipe(
        name=name,
        task=task,
        title=title or name,
        description=description,
        summary=learner.summary,
        expected="",
        source=None,
        data=DataCard(name=data.absolute().name or "data", licence=licence, description="The publisher's own data."),
        settings=learner.default_settings,
        options=learner.default_options,
    )
