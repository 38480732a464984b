"""The tasks: what each one accepts, computes before and after the network, and answers.

Each task is one module of this package. Training and the service look it up by the module's name.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from tasks.contract import Task


@cache
def _module_names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_")))


def _find_task_type(name: str) -> type[Task] | None:
    """Return the Task that a public module of this package defines; None if there is no such module or Task."""
    return _task_type_in(import_module(f"tasks.{name}")) if name in _module_names() else None


def _task_type_in(module: ModuleType) -> type[Task] | None:
    """Return the Task that a module defines, or None. Raises ValueError if it defines several."""
    defined = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    types = [value for value in defined if isinstance(value, type) and issubclass(value, Task) and value is not Task]
    if len(types) > 1:
        raise ValueError(f"{module.__name__} defines several tasks: {', '.join(t.__name__ for t in types)}.")
    return types[0] if types else None


@cache
def task_names() -> tuple[str, ...]:
    """The names of all tasks, in alphabetical order."""
    return tuple(name for name in _module_names() if _find_task_type(name) is not None)


def task_type(name: str) -> type[Task]:
    """Return the class of a task.

    Only its own module is imported, so that a task that cannot be imported does not affect the others. Names come from
    manifests and requests: nothing outside this package is imported.

    Raises KeyError if there is no such task.
    """
    task_class = _find_task_type(name)
    if task_class is None:
        raise KeyError(f"There is no task '{name}'; the tasks are {', '.join(task_names())}.")
    return task_class
