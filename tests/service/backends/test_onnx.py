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


def open_chain_of_differences(steps: int) -> OnnxBackend:
    """Open a graph whose intermediate results are as large as its input, and which no optimisation joins."""
    nodes = [helper.make_node("Sin", ["x"], ["y0"])]
    nodes += [helper.make_node("Sub", [f"y{i}", "x"], [f"y{i + 1}"]) for i in range(steps)]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1024])],
        [helper.make_tensor_value_info(f"y{steps}", TensorProto.FLOAT, ["batch", 1024])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    signature = TensorSpec("x", "float32", (1024,)), TensorSpec(f"y{steps}", "float32", (1024,))
    return OnnxRuntime("cpu", 1)(model.SerializeToString(), signature[:1], signature[1:])


def test_further_runs_of_a_shape_need_no_more_memory_than_the_first_which_was_measured() -> None:
    backend, arrays = open_chain_of_differences(4), {"x": np.zeros((10_000, 1024), np.float32)}
    in_use = []
    backend.release()
    for _ in range(4):
        backend.run(arrays)
        in_use.append(backend.memory_in_use() or 0)
    backend.release()

    # A plan of the run as a single block, on top of what the first run has left, would be a second copy of all this.
    assert max(in_use) - in_use[0] < arrays["x"].nbytes / 2


@pytest.mark.parametrize("module", ["service.app", "training.publishing.export", "benchmarks"])
def test_runtime_has_no_telemetry_and_writes_no_files(tmp_path: Path, module: str) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    del environment["ORT_DISABLE_TELEMETRY"]
    program = f"import {module}, onnxruntime"

    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, timeout=120, check=True)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
