"""The tiny model of each task, found by the task's name.

`tests/tiny/<task>.py` defines TASK and `graph()`. It may define VARIANTS, further tiny models by name: each a task and
a function that builds its graph. A task whose fields all have defaults needs no such file.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from tasks import task_names, task_type
from tasks.contract import Task
from tests.model_folders import publish
from tests.tiny.graphs import zeros_graph

Builder = Callable[[], bytes]


def tiny(name: str) -> tuple[Task, bytes]:
    """Return the tiny task of this name, with its graph."""
    module = _module(name)
    if module is None:
        task = task_type(name)()
        return task, zeros_graph(task)
    return module.TASK, module.graph()


def _module(name: str) -> ModuleType | None:
    path = f"tests.tiny.{name}"
    return import_module(path) if find_spec(path) else None


def variants() -> dict[str, tuple[Task, Builder]]:
    """Return all variants of tiny models, by their names, which are not names of tasks."""
    models: dict[str, tuple[Task, Builder]] = {}
    for name in task_names():
        models |= getattr(_module(name), "VARIANTS", {})
    return models


def graph_of(name: str) -> bytes:
    """Return the graph of a tiny model or variant."""
    return variants()[name][1]() if name in variants() else tiny(name)[1]


def every_task() -> dict[str, Task]:
    """Return the tiny task of each name, and of each variant."""
    return {name: tiny(name)[0] for name in task_names()} | {name: task for name, (task, _) in variants().items()}


def publish_every_task(root: Path) -> None:
    """Write a model folder for each tiny model and variant, named after it."""
    for name in task_names():
        publish(root, name, *tiny(name))
    for name, (task, graph) in variants().items():
        publish(root, name, task, graph())
