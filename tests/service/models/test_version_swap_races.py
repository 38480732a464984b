"""What the event loop does to the versions of a model while the loader is at them: at every line of it."""

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
from service.models.repository import Model, Repository
from tasks.contract import Task
from tests.model_folders import CREDIT, credit_graph, publish
from tests.service.conftest import Start
from tests.service.models.test_shadow import LENIENT, ROW, ask_until, credit, decided, report
from tests.virtual_pipeline import VirtualDevice

_LOADER = ("rescan", "_list", "_load_newest", "_load_shadow", "_put", "_retire")
_BLOCKED_S = 0.05
"""Who has not come back by then waits for the loader."""


class AtLine:
    """Has something else done by another thread, at one of the lines of the loader."""

    def __init__(self, number: int, do: Callable[[], None]) -> None:
        self._number = number
        self._other = threading.Thread(target=do)
        self.lines = 0

    def while_running(self, step: Callable[[], None]) -> None:
        """Runs the step in a thread of its own, and all of the other thing."""

        def run() -> None:
            sys.settrace(self._trace)
            step()

        loader = threading.Thread(target=run)
        loader.start()
        loader.join()
        if self._other.ident is None:
            self._other.start()
        self._other.join()

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename != repository_module.__file__ or code.co_name not in _LOADER:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._number:
                self._other.start()
                self._other.join(_BLOCKED_S)
        return self._trace


def make_pipeline(name: str, task: Task, backend: Backend, proven: object) -> Pipeline:
    return Pipeline(task, backend, VirtualDevice().context, name=name, policy=BatchPolicy(8))


def with_a_version_in_the_shadow(root: Path) -> tuple[Repository, Model]:
    """The second version is tried, and the third has just come."""
    repository = Repository(
        root, 1, OnnxRuntime("cpu", 1), make_pipeline, is_tried=lambda name: True, on_retired=lambda pipeline: None
    )
    publish(root, "credit", CREDIT, credit_graph())
    repository.scan()
    repository.load_all()
    publish(root, "credit", CREDIT, credit_graph(), version=2)
    repository.rescan()
    (shadow,) = repository.shadows()
    publish(root, "credit", CREDIT, credit_graph(), version=3)
    return repository, shadow


@pytest.mark.parametrize(
    ("decide", "may_serve"),
    [(Repository.promote, {"1", "2"}), (partial(Repository.roll_back, reason="It was slow."), {"1"})],
    ids=["promoted", "rolled back"],
)
def test_a_version_decided_on_at_any_moment_while_the_next_is_loaded_leaves_one_that_serves(
    tmp_path: Path, decide: Callable[[Repository, Model], None], may_serve: set[str]
) -> None:
    served: list[str] = []
    lines = 1
    while len(served) < lines:
        repository, shadow = with_a_version_in_the_shadow(tmp_path / str(len(served)))
        at_line = AtLine(len(served) + 1, partial(decide, repository, shadow))
        at_line.while_running(repository.rescan)
        lines = at_line.lines
        model = repository.find("credit")
        served.append(model.manifest.version)
        assert (tried := repository.shadow_of(model)) is not None
        assert tried.manifest.version == "3"

    assert len(served) > 10
    assert set(served) == may_serve


def test_requests_with_options_of_their_own_are_mirrored_as_all_others(tmp_path: Path, start: Start) -> None:
    credit(tmp_path, 1)
    server = start(models=tmp_path, **LENIENT)
    credit(tmp_path, 2)
    server.service.repository.rescan()
    options = {"timeout_ms": 20_000, "priority": "high"}

    ask_until(server, decided(server), json=ROW | options, headers={"x-request-priority": "low"})

    assert (report(server)["verdict"], report(server)["errors"]) == ("promoted", 0)
