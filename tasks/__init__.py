"""The tasks: what each one accepts, computes before and after the network, and answers.

Each task is one module of this package. Training and the service look it up by the module's name.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from tasks.contract import Task


@cache
def _task_types() -> dict[str, type[Task]]:
    """Map the name of each public module that defines a Task to that class."""
    names = sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    types = {name: _task_type_in(import_module(f"tasks.{name}")) for name in names}
    return {name: defined for name, defined in types.items() if defined is not None}


def _task_type_in(module: ModuleType) -> type[Task] | None:
    """Return the Task that a module defines, or None. Raises ValueError if it defines several."""
    defined = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    types = [value for value in defined if isinstance(value, type) and issubclass(value, Task) and value is not Task]
    if len(types) > 1:
        raise ValueError(f"{module.__name__} defines several tasks: {', '.join(t.__name__ for t in types)}.")
    return types[0] if types else None


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
