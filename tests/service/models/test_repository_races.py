"""The event loop promotes or rolls back a version at any moment while the loader thread works on the same model."""

import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from service.backends.base import Backend
from service.backends.onnx import OnnxRuntime
from service.engine.batcher import BatchPolicy
from service.engine.pipeline import Pipeline
from service.models import repository as repository_module
from service.models.model import Model
from service.models.repository import Repository
from tasks.contract import Task
from tests.model_folders import publish
from tests.tiny.tabular import CREDIT, credit_graph
from tests.virtual_pipeline import VirtualDevice

_LOADER_METHODS = (
    "rescan",
    "_follow",
    "_update_entries",
    "_update_entry",
    "_settle",
    "_load_needed",
    "_load_served",
    "_serve_shadow",
    "_load_shadow",
    "_replace_entries",
    "_set_entries",
    "_replace_unneeded",
)
_BLOCKED_AFTER_S = 0.05
"""A thread that has not finished by then is assumed to wait for the loader's lock; a longer wait does no harm."""


class InterleavedAtLine:
    """Runs a function in another thread when the loader reaches one of its lines."""

    def __init__(self, line_number: int, function: Callable[[], None]) -> None:
        self._line_number = line_number
        self._other = threading.Thread(target=function)
        self.lines = 0
        """Lines that the loader has run."""

    def run(self, load: Callable[[], None]) -> None:
        """Run both to their ends."""

        def traced_load() -> None:
            sys.settrace(self._trace)
            load()

        loader = threading.Thread(target=traced_load)
        loader.start()
        loader.join()
        if self._other.ident is None:
            self._other.start()
        self._other.join()

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename != repository_module.__file__ or code.co_name not in _LOADER_METHODS:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._line_number:
                self._other.start()
                self._other.join(_BLOCKED_AFTER_S)
        return self._trace


def make_pipeline(name: str, version: str, task: Task, backend: Backend, golden_runs: object, work: object) -> Pipeline:
    return Pipeline(task, backend, VirtualDevice().context, name=name, version=version, policy=BatchPolicy(8))


def repository_with_shadow(root: Path) -> tuple[Repository, Model]:
    """Version 1 serves, version 2 is the shadow, and version 3 has just been published."""
    repository = Repository(
        root,
        1,
        OnnxRuntime("cpu", 1),
        make_pipeline,
        needs_evaluation=lambda name: True,
        on_retired=lambda pipeline: None,
    )
    publish(root, "credit", CREDIT, credit_graph())
    repository.scan()
    repository.load_all()
    publish(root, "credit", CREDIT, credit_graph(), version=2)
    repository.rescan()
    (shadow,) = repository.shadow_models()
    publish(root, "credit", CREDIT, credit_graph(), version=3)
    return repository, shadow


@pytest.mark.parametrize(
    ("decide", "served_versions"),
    [(Repository.promote, {"1", "2"}), (partial(Repository.roll_back, reason="It was slow."), {"1"})],
    ids=["promoted", "rolled back"],
)
def test_decision_at_any_moment_of_a_rescan_leaves_a_served_version_and_the_new_shadow(
    tmp_path: Path, decide: Callable[[Repository, Model], None], served_versions: set[str]
) -> None:
    served: list[str] = []
    lines = 1
    while len(served) < lines:
        repository, shadow = repository_with_shadow(tmp_path / str(len(served)))
        interleaved = InterleavedAtLine(len(served) + 1, partial(decide, repository, shadow))
        interleaved.run(repository.rescan)
        lines = interleaved.lines
        model = repository.find("credit")
        served.append(model.manifest.version)
        assert (new_shadow := repository.shadow_of(model)) is not None
        assert new_shadow.manifest.version == "3"

    assert len(served) > 10
    assert set(served) == served_versions
