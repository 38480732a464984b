"""Look-ups by name: recipes, learners, and a recipe for data of one's own."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from training import learners, recipes
from training.core.recipe import DataCard, Recipe
from training.engine.learner import Learner


def recipe_names() -> tuple[str, ...]:
    """The files of training/recipes/."""
    return _names(recipes.__path__)


def learner_names() -> tuple[str, ...]:
    """The folders of training/learners/, one a task."""
    return _names(learners.__path__)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(sorted(module.name for module in iter_modules(path) if not module.name.startswith("_")))


def load_recipe(name: str) -> Recipe:
    """The recipe of that name, which is a file's."""
    found: Recipe = import_module(f"training.recipes.{name}").RECIPE
    return found


def learner_type(task: str) -> type[Learner]:
    """The learner of a task."""
    module = import_module(f"training.learners.{task}.learner")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Learner) and value.__module__ == module.__name__
    )
    return found


def recipe_for(task: str, name: str, data: Path, licence: str) -> Recipe:
    """A recipe for data of the user's own, with the learner's defaults."""
    learner = learner_type(task)
    return Recipe(
        name=name,
        task=task,
        title=name,
        summary=learner.summary,
        expected="",
        source=None,
        data=DataCard(name=data.name, licence=licence, description=f"The user's own data, {data}."),
        settings=learner.default_settings,
        options=learner.default_options,
    )
