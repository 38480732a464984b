"""ONNX Runtime's errors are classified by their messages, and by the state of the device if those are ambiguous."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backends.base import BackendError, DeviceLost, OutOfMemory
from service.backends.onnx_errors import classify_error

# Messages of ONNX Runtime 1.10 to 1.32 from bug reports, without names of machines and folders.
NODE = "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running X node. Name:'c' Status Message: "
OUT_OF_MEMORY = [
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
    NODE + f"CUDA failure {code}: {message} ; GPU=0 ; hostname=h ; expr=cudaStreamSynchronize(stream);"
    for code, message in [
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
FAILED_RUN = [
    NODE + "CUDA failure 1: invalid argument ; GPU=1 ; hostname=h ; expr=cudaMemcpyAsync(a, b, n, kind, stream);",
    NODE + "CUDA failure 9: invalid configuration argument ; GPU=0 ; hostname=h ; expr=cudaGetLastError();",
    NODE + "CUDA failure 98: invalid device function ; GPU=0 ; hostname=h ; expr=cudaGetLastError();",
    NODE + "CUDNN failure 9: CUDNN_STATUS_NOT_SUPPORTED ; GPU=0 ; hostname=h ; expr=cudnnConvolutionForward(h);",
    NODE + "indices element out of data bounds, idx=7 must be within the inclusive range [-2,1]",
    "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x index: 1 Got: 3 Expected: 4",
    NODE + "the node is called 'unknown error'",
]
AMBIGUOUS = [
    NODE + "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=h ; expr=cudnnConvolutionForward(h);",
    NODE + "CUDNN failure 5003: CUDNN_STATUS_EXECUTION_FAILED_CUDART ; GPU=0 ; hostname=h ; expr=x;",
    NODE + "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=h ; expr=cublasGemmHelper(x);",
]
INTERNAL = NODE + "CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0 ; hostname=h ; expr=cudnnCreate(&handle);"


def must_not_be_called() -> bool:
    raise AssertionError("The message is unambiguous.")


@pytest.mark.parametrize("text", OUT_OF_MEMORY)
def test_out_of_memory_is_recognised(text: str) -> None:
    error = classify_error(RuntimeError(text), must_not_be_called)

    assert type(error) is OutOfMemory
    assert text.strip() in str(error)


@pytest.mark.parametrize("text", LOST)
def test_unrecoverable_cuda_error_is_recognised(text: str) -> None:
    assert type(classify_error(RuntimeError(text), must_not_be_called)) is DeviceLost


@pytest.mark.parametrize("text", FAILED_RUN)
def test_error_of_a_single_run_is_a_plain_backend_error(text: str) -> None:
    assert type(classify_error(RuntimeError(text), lambda: False)) is BackendError
    assert type(classify_error(RuntimeError(text), lambda: None)) is BackendError


@pytest.mark.parametrize(
    ("is_lost", "ambiguous_type", "internal_type"),
    [(False, BackendError, BackendError), (True, DeviceLost, DeviceLost), (None, DeviceLost, BackendError)],
)
def test_ambiguous_error_is_decided_by_the_device(
    is_lost: bool | None, ambiguous_type: type[BackendError], internal_type: type[BackendError]
) -> None:
    assert {type(classify_error(RuntimeError(text), lambda: is_lost)) for text in AMBIGUOUS} == {ambiguous_type}
    assert type(classify_error(RuntimeError(INTERNAL), lambda: is_lost)) is internal_type


def test_memory_error_of_python_is_out_of_memory() -> None:
    error = classify_error(np._core._exceptions._ArrayMemoryError((2**50,), np.dtype(np.float32)), must_not_be_called)

    assert type(error) is OutOfMemory
    assert "Unable to allocate 4.00 PiB" in str(error)


@given(st.text())
def test_any_message_gives_a_backend_error(text: str) -> None:
    assert isinstance(classify_error(RuntimeError(text)), BackendError)
