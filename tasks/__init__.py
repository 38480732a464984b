"""The tasks: what each one accepts, computes before and after the network, and answers.

Each task is one module of this package. Training and the service look it up by the module's name.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from tasks.contract import Task


@cache
def _task_types() -> dict[str, type[Task]]:
    """Map the name of each public module that defines a Task to that class."""
    names = sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    defined = {name: _types_defined_in(name) for name in names}
    return {name: types[0] for name, types in defined.items() if types}


def _types_defined_in(name: str) -> list[type[Task]]:
    module = import_module(f"tasks.{name}")
    values = [value for value in vars(module).values() if isinstance(value, type) and value is not Task]
    return [value for value in values if issubclass(value, Task) and value.__module__ == module.__name__]


def task_names() -> tuple[str, ...]:
    """The names of all tasks, in alphabetical order."""
    return tuple(_task_types())


def task_type(name: str) -> type[Task]:
    """Return the class of a task.

    Names come from manifests and requests, so an unknown name is never imported.

    Raises KeyError if there is no such task.
    """
    if name not in _task_types():
        raise KeyError(f"There is no task '{name}'; the tasks are {', '.join(task_names())}.")
    return _task_types()[name]
