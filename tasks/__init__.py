"""What each task promises, to trainer and client alike; one file a task, found by its name."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from tasks.contract import Task


@cache
def _task_types() -> dict[str, type[Task]]:
    """Each public module of this package that defines a Task, by its name; other modules define none."""
    names = sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    found = {name: _defined_in(name) for name in names}
    return {name: types[0] for name, types in found.items() if types}


def _defined_in(name: str) -> list[type[Task]]:
    module = import_module(f"tasks.{name}")
    values = [value for value in vars(module).values() if isinstance(value, type) and value is not Task]
    return [value for value in values if issubclass(value, Task) and value.__module__ == module.__name__]


def task_names() -> tuple[str, ...]:
    """The names of all tasks, in alphabetical order."""
    return tuple(_task_types())


def task_type(name: str) -> type[Task]:
    """The task's class.

    Raises KeyError for a name that is no task's: names come from manifests and requests, and nothing is imported on
    their word.
    """
    if name not in _task_types():
        raise KeyError(f"There is no task '{name}'; the tasks are {', '.join(task_names())}.")
    return _task_types()[name]
