"""The ONNX Runtime backend on the CPU: out of memory, memory figures, and no telemetry."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.backends.base import OutOfMemory
from service.backends.onnx import OnnxBackend, OnnxRuntime
from tasks.contract import TensorSpec

ROOT = Path(__file__).parents[3]


def open_expanding_graph(factor: int) -> OnnxBackend:
    """Open a graph that repeats its input `factor` factor."""
    constants = [
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
        numpy_helper.from_array(np.array([1, factor, 1], np.int64), "shape"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["x", "axes"], ["raised"]),
            helper.make_node("Expand", ["raised", "shape"], ["y"]),
        ],
        "expanding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", factor, 1024])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return OnnxRuntime("cpu", 1)(
        model.SerializeToString(),
        (TensorSpec("x", "float32", (1024,)),),
        (TensorSpec("y", "float32", (factor, 1024)),),
    )


def test_run_after_one_that_is_out_of_memory_works() -> None:
    backend = open_expanding_graph(2**38)

    with pytest.raises(OutOfMemory, match="allocate"):
        backend.run({"x": np.zeros((1, 1024), np.float32)})

    assert backend.run({"x": np.zeros((0, 1024), np.float32)})["y"].shape == (0, 2**38, 1024)


def test_cpu_backend_reports_plausible_memory_figures() -> None:
    backend = open_expanding_graph(1)

    in_use, free = backend.memory_in_use(), backend.memory_free()

    assert in_use is not None
    assert free is not None
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    assert 0 < in_use <= peak
    assert 0 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("module", ["service.app", "training.publishing.export", "benchmarks"])
def test_runtime_has_no_telemetry_and_writes_no_files(tmp_path: Path, module: str) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    del environment["ORT_DISABLE_TELEMETRY"]
    program = f"import {module}, onnxruntime"

    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, timeout=120, check=True)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
