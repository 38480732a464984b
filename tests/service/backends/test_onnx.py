"""ONNX Runtime's errors are told apart, and the memory of a device is read from where the system tells it."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from service.backends.base import BackendError, DeviceLost, OutOfMemory
from service.backends.memory import CudaMemory, MainMemory
from service.backends.onnx import OnnxBackend, OnnxRuntime
from service.backends.onnx_errors import failure_of
from tasks.contract import TensorSpec

ROOT = Path(__file__).parents[3]
# What ONNX Runtime 1.10 to 1.32 has printed, with the names of machines and folders cut; from reports of its users.
NODE = "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running X node. Name:'c' Status Message: "
NO_ROOM = [
    NODE
    + "bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*, bool, "
    "onnxruntime::WaitNotificationFn) Failed to allocate memory for requested buffer of size 2830172160\n",
    NODE + "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=cuda_allocator.cc ; line=47 ; "
    "expr=cudaMalloc((void**)&p, size);",
    NODE + "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h ; expr=cublasCreate(&cublas_handle_);",
    NODE + "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h ; expr=cudnnCreate(&handle);",
    NODE + "CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0 ; hostname=h ; expr=x;",
    NODE + "bfc_arena.cc:367 Available memory of 1024 is smaller than requested bytes of 939524096",
    NODE + "std::bad_alloc",
    NODE + "bad allocation",
]
LOST = [
    NODE + f"CUDA failure {number}: {words} ; GPU=0 ; hostname=h ; expr=cudaStreamSynchronize(stream);"
    for number, words in [
        (46, "all CUDA-capable devices are busy or unavailable"),
        (100, "no CUDA-capable device is detected"),
        (101, "invalid device ordinal"),
        (214, "uncorrectable ECC error encountered"),
        (220, "uncorrectable NVLink error detected during the execution"),
        (700, "an illegal memory access was encountered"),
        (702, "the launch timed out and was terminated"),
        (710, "device-side assert triggered"),
        (714, "hardware stack error"),
        (715, "an illegal instruction was encountered"),
        (716, "misaligned address"),
        (717, "operation not supported on global/shared address space"),
        (718, "invalid program counter"),
        (719, "unspecified launch failure"),
        (999, "unknown error"),
    ]
] + [NODE + "CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered"]
OF_THIS_RUN = [
    NODE + "CUDA failure 1: invalid argument ; GPU=1 ; hostname=h ; expr=cudaMemcpyAsync(a, b, n, kind, stream);",
    NODE + "CUDA failure 9: invalid configuration argument ; GPU=0 ; hostname=h ; expr=cudaGetLastError();",
    NODE + "CUDA failure 98: invalid device function ; GPU=0 ; hostname=h ; expr=cudaGetLastError();",
    NODE + "CUDNN failure 9: CUDNN_STATUS_NOT_SUPPORTED ; GPU=0 ; hostname=h ; expr=cudnnConvolutionForward(h);",
    NODE + "indices element out of data bounds, idx=7 must be within the inclusive range [-2,1]",
    "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x index: 1 Got: 3 Expected: 4",
    NODE + "the node is called 'unknown error'",
]
UNCLEAR = [
    NODE + "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=h ; expr=cudnnConvolutionForward(h);",
    NODE + "CUDNN failure 5003: CUDNN_STATUS_EXECUTION_FAILED_CUDART ; GPU=0 ; hostname=h ; expr=x;",
    NODE + "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=h ; expr=cublasGemmHelper(x);",
]
INTERNAL = NODE + "CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0 ; hostname=h ; expr=cudnnCreate(&handle);"


def never_asked() -> bool:
    raise AssertionError("The text says it all.")


@pytest.mark.parametrize("text", NO_ROOM)
def test_an_error_for_want_of_memory_is_told(text: str) -> None:
    failure = failure_of(RuntimeError(text), never_asked)

    assert type(failure) is OutOfMemory
    assert text.strip() in str(failure)


@pytest.mark.parametrize("text", LOST)
def test_an_error_that_cuda_cannot_get_over_is_told(text: str) -> None:
    assert type(failure_of(RuntimeError(text), never_asked)) is DeviceLost


@pytest.mark.parametrize("text", OF_THIS_RUN)
def test_an_error_of_one_run_is_no_more_than_that(text: str) -> None:
    assert type(failure_of(RuntimeError(text), lambda: False)) is BackendError
    assert type(failure_of(RuntimeError(text), lambda: None)) is BackendError


@pytest.mark.parametrize(
    ("is_lost", "of_unclear", "of_internal"),
    [(False, BackendError, BackendError), (True, DeviceLost, DeviceLost), (None, DeviceLost, BackendError)],
)
def test_what_the_text_leaves_open_the_device_decides(
    is_lost: bool | None, of_unclear: type[BackendError], of_internal: type[BackendError]
) -> None:
    assert {type(failure_of(RuntimeError(text), lambda: is_lost)) for text in UNCLEAR} == {of_unclear}
    assert type(failure_of(RuntimeError(INTERNAL), lambda: is_lost)) is of_internal


def test_a_memory_error_of_python_is_one_too() -> None:
    failure = failure_of(np._core._exceptions._ArrayMemoryError((2**50,), np.dtype(np.float32)), never_asked)

    assert type(failure) is OutOfMemory
    assert "Unable to allocate 4.00 PiB" in str(failure)


@given(st.text())
def test_whatever_the_words_it_is_an_error_of_the_backend(text: str) -> None:
    assert isinstance(failure_of(RuntimeError(text)), BackendError)


def swelling(times: int) -> OnnxBackend:
    """A graph that makes its input so many times as large."""
    constants = [
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
        numpy_helper.from_array(np.array([1, times, 1], np.int64), "shape"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["x", "axes"], ["raised"]),
            helper.make_node("Expand", ["raised", "shape"], ["y"]),
        ],
        "swelling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1024])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", times, 1024])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return OnnxRuntime("cpu", 1)(
        model.SerializeToString(),
        (TensorSpec("x", "float32", (1024,)),),
        (TensorSpec("y", "float32", (times, 1024)),),
    )


def test_a_run_that_needs_more_memory_than_any_computer_has_fails_for_that_and_the_next_one_works() -> None:
    backend = swelling(2**38)

    with pytest.raises(OutOfMemory, match="allocate"):
        backend.run({"x": np.zeros((1, 1024), np.float32)})

    assert backend.run({"x": np.zeros((0, 1024), np.float32)})["y"].shape == (0, 2**38, 1024)


def test_a_backend_on_the_cpu_tells_of_memory_that_there_is() -> None:
    backend = swelling(1)

    in_use, free = backend.memory_in_use(), backend.memory_free()

    assert in_use is not None
    assert free is not None
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    assert 0 < in_use <= peak
    assert 0 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\nBuffers:            0 kB\n"


def computer(root: Path, files: dict[str, str]) -> MainMemory:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return MainMemory(root)


def group(folder: str, limit: str, used: int, cached: int) -> dict[str, str]:
    """The files of a control group of version 2."""
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 7\nfile 8\ninactive_anon 9\ninactive_file {cached}\n",
    }


def old_group(folder: str, limit: int, used: int, cached: int) -> dict[str, str]:
    """The files of a control group of version 1."""
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"cache 8\ninactive_file 5\ntotal_inactive_file {cached}\n",
    }


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
IN_V2, IN_V1 = {"proc/self/cgroup": "0::/pods/one\n"}, {"proc/self/cgroup": "5:cpu,memory:/pods/one\n0::/\n"}
NO_LIMIT = 9223372036854771712
"""What version 1 says where there is none: the largest number of whole pages."""


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8_192_000),
        (IN_V2, 8_192_000),
        (IN_V2 | group(f"{V2}/pods/one", "max", 3_000, 0), 8_192_000),
        (IN_V2 | group(f"{V2}/pods/one", "10000", 3_000, 500), 7_500),
        (IN_V2 | group(f"{V2}/pods/one", "10000", 3_000, 500) | group(f"{V2}/pods", "9000", 5_000, 600), 4_600),
        (IN_V2 | group(f"{V2}/pods/one", "10000", 11_000, 0), 0),
        ({"proc/self/cgroup": "0::/\n"} | group(V2, "10000", 3_000, 0), 7_000),
        (IN_V2 | group(V2, "10000", 3_000, 0), 7_000),
        (IN_V1 | old_group(f"{V1}/pods/one", 10_000, 3_000, 500), 7_500),
        (IN_V1 | old_group(f"{V1}/pods/one", NO_LIMIT, 3_000, 500) | old_group(V1, 6_000, 3_000, 100), 3_100),
        (IN_V1 | old_group(f"{V1}/pods/one", NO_LIMIT, 3_000, 500), 8_192_000),
    ],
    ids=[
        "no control groups",
        "a group without files",
        "a group without a limit",
        "a limit, and files that can be forgotten",
        "a limit of the group above",
        "more than the limit is in use",
        "a container that sees its own group as the root",
        "a container that sees its group under another name",
        "version 1",
        "version 1, limited at the mount",
        "version 1 without a limit",
    ],
)
def test_what_is_free_is_the_least_that_computer_and_control_groups_leave(
    tmp_path: Path, files: dict[str, str], free: int
) -> None:
    assert computer(tmp_path, files).free() == free


def test_what_is_in_use_is_the_resident_set(tmp_path: Path) -> None:
    memory = computer(tmp_path, {"proc/self/statm": "5000 1234 700 1 0 900 0\n"})

    assert memory.in_use() == 1234 * os.sysconf("SC_PAGE_SIZE")


def test_where_there_is_no_proc_memory_is_not_known(tmp_path: Path) -> None:
    memory = MainMemory(tmp_path)

    assert (memory.in_use(), memory.free(), memory.is_lost()) == (None, None, False)


def test_where_no_cuda_is_loaded_its_memory_is_not_known() -> None:
    memory = CudaMemory(libraries=("libthere-is-no-such-thing.so.1",))

    assert (memory.in_use(), memory.free(), memory.is_lost()) == (None, None, None)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no compiler here")
@pytest.mark.parametrize(("status", "expected"), [(0, (70, 30, False)), (700, (None, None, True))])
def test_cuda_is_asked_as_its_reference_says(
    tmp_path: Path, status: int, expected: tuple[int | None, int | None, bool]
) -> None:
    (tmp_path / "runtime.c").write_text(
        f"#include <stddef.h>\nint cudaMemGetInfo(size_t *free, size_t *total) "
        f"{{ *free = 30; *total = 100; return {status}; }}\nint cudaDeviceSynchronize(void) {{ return {status}; }}\n"
    )
    library = str(tmp_path / f"libruntime{status}.so")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, str(tmp_path / "runtime.c")], check=True)
    memory = CudaMemory(libraries=("libnone.so.1", library))

    before = (memory.in_use(), memory.free(), memory.is_lost())
    ctypes.CDLL(library)  # As ONNX Runtime does.

    assert before == (None, None, None)
    assert (memory.in_use(), memory.free(), memory.is_lost()) == expected


@pytest.mark.parametrize("module", ["service.app", "training.export", "benchmarks"])
def test_the_runtime_reports_to_nobody_and_leaves_no_file_of_its_own(tmp_path: Path, module: str) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    del environment["ORT_DISABLE_TELEMETRY"]
    program = f"import {module}, onnxruntime"

    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, timeout=120, check=True)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
