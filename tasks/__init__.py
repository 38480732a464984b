"""What each task promises, to trainer and client alike; one file a task, found by its name."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from tasks.contract import Task

_NOT_TASKS = {"contract", "invariance", "manifest"}


@cache
def task_names() -> tuple[str, ...]:
    """The tasks there are: the public modules of this package that are not the contract itself."""
    found = (module.name for module in iter_modules(__path__))
    return tuple(sorted(name for name in found if not name.startswith("_") and name not in _NOT_TASKS))


def task_type(name: str) -> type[Task]:
    """The task's class.

    Raises KeyError for a name that is not a file of this package: names come from manifests and requests, and
    nothing is imported on their word.
    """
    if name not in task_names():
        raise KeyError(f"There is no task '{name}'; the tasks are {', '.join(task_names())}.")
    module = import_module(f"tasks.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    )
    return found
