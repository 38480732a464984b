"""The smallest model of each task, found by its name: tests/tiny_<task>.py has a TASK and a graph()."""

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
    module = import_module(f"tests.tiny_{name}")
    task: Task = module.TASK
    return task, module.graph()


def every_task() -> dict[str, Task]:
    """An example of each task, and of each kind of it."""
    return {name: tiny(name)[0] for name in task_names()} | {"tags": TAGS}


def publish_every_task(root: Path) -> None:
    """A model folder for each, named after it."""
    for name in task_names():
        publish(root, name, *tiny(name))
    publish(root, "tags", TAGS, colours_graph())
