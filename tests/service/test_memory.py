"""The server gives memory back when it is idle after the process has grown."""

import time
from pathlib import Path

import numpy as np
import pytest

from service.backends.fake import FakeBackend
from service.backends.memory import HostMemory
from service.backends.onnx import OnnxRuntime
from tasks.contract import TensorSpec
from tests.model_folders import publish
from tests.service.conftest import Start
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until


@pytest.mark.skipif(HostMemory().in_use() is None, reason="the memory of a process is unknown on this system")
def test_backends_release_memory_once_the_grown_process_is_idle(start: Start, tmp_path: Path) -> None:
    released_at: list[float] = []
    publish(tmp_path, "credit", CREDIT, credit_graph())
    runtime = OnnxRuntime("cpu", 1)

    def open_backend(graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> FakeBackend:
        run = runtime(graph, inputs, outputs).run
        return FakeBackend(run, on_release=lambda: released_at.append(time.monotonic()))

    start(open_backend, models=tmp_path)
    ready_at = time.monotonic()
    hoard = []

    def is_released() -> bool:
        hoard.append(np.ones(2_000_000))  # 16 MB each time, until the server has noticed.
        return any(at > ready_at for at in released_at)

    wait_until(is_released, interval_s=0.25)
