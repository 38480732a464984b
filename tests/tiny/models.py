"""The smallest model of each task, found by its name: tests/tiny/<task>.py has a TASK and a graph().

It may have MORE: further kinds of the task, by names of their own, each a task and what makes its graph.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from tasks import task_names
from tasks.contract import Task
from tests.model_folders import COLOURS, colours_graph, publish

TAGS = replace(COLOURS, thresholds=(0.3, 0.3, 0.3))
"""Which colours does a picture have much of? The same graph: what it says of a colour is compared with a threshold."""


def tiny(name: str) -> tuple[Task, bytes]:
    """The smallest task of this name, with its graph."""
    module = import_module(f"tests.tiny.{name}")
    task: Task = module.TASK
    return task, module.graph()


def more_kinds() -> dict[str, tuple[Task, Callable[[], bytes]]]:
    """Further kinds of tasks, by names that are no task's."""
    found: dict[str, tuple[Task, Callable[[], bytes]]] = {"tags": (TAGS, colours_graph)}
    for name in task_names():
        found |= getattr(import_module(f"tests.tiny.{name}"), "MORE", {})
    return found


def graph_of(name: str) -> bytes:
    """The graph of a task, or of a kind of one."""
    kinds = more_kinds()
    return kinds[name][1]() if name in kinds else tiny(name)[1]


def every_task() -> dict[str, Task]:
    """An example of each task, and of each kind of it."""
    return {name: tiny(name)[0] for name in task_names()} | {name: task for name, (task, _) in more_kinds().items()}


def publish_every_task(root: Path) -> None:
    """A model folder for each, named after it."""
    for name in task_names():
        publish(root, name, *tiny(name))
    for name, (task, graph) in more_kinds().items():
        publish(root, name, task, graph())
