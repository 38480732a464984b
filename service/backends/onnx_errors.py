"""Classification of ONNX Runtime's errors: this run failed, it ran out of memory, or the device is lost.

The runtime's exceptions differ only in their messages. Its CUDA provider writes "CUDA failure 700: an illegal memory
access was encountered ; GPU=0 ; …", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; …" or "CUDNN failure 5003: …"
(cuda_call.cc), and its arena writes "Failed to allocate memory for requested buffer of size …" (bfc_arena.cc).
"""

import re
from collections.abc import Callable

from service.backends.base import BackendError, DeviceLost, OutOfMemory

_CUDA_ERROR_CODE = re.compile(r"CUDA (?:failure|error) (\d+)")
_OUT_OF_MEMORY = re.compile(
    r"Failed to allocate memory|Available memory of \d+ is smaller|std::bad_alloc|bad allocation|bad_array_new_length"
    r"|CUDA (?:failure|error) 2:|cudaErrorMemoryAllocation|CUDA out of memory"
    r"|CU(?:BLAS|DNN|FFT|RAND|SPARSE)_STATUS_(?:ALLOC_FAILED|ALLOCATION_FAILED)|CUFFT_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_(?:HOST|DEVICE)_ALLOCATION_FAILED"
)
_STICKY_ERRORS = {
    214: "uncorrectable ECC error",
    220: "uncorrectable NVLink error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "tensor memory not completely freed",
    911: "an async error has occurred in external entity outside of CUDA",
}
"""Errors after which CUDA no longer works in a process: code and message.

For those from 700 on, the reference of the CUDA Runtime API (enum cudaError) says that the process is left in an
inconsistent state, that any further work returns the same error, and that the process must be terminated and
relaunched. For 214 and 220 it says only that memory or a link has lost data, uncorrectably: data on the device may be
wrong from then on, and only a new process loads it again.
"""
_DEVICE_GONE_ERRORS = {
    46: "all CUDA-capable devices are busy or unavailable",
    100: "no CUDA-capable device is detected",
    101: "invalid device ordinal",
    999: "unknown error",
}
"""Errors of a run that no longer finds the device its graph was loaded on, or that fails inside the driver for an
unknown reason (enum cudaError). The process cannot recover from them."""
_LOST_CODES = frozenset(_STICKY_ERRORS) | frozenset(_DEVICE_GONE_ERRORS)
_LOST_MESSAGES = tuple(_STICKY_ERRORS.values())
_AMBIGUOUS = re.compile(r"CU(?:BLAS|DNN)_STATUS_EXECUTION_FAILED")
"""A kernel could not be launched, for one of many reasons (status codes of cuBLAS and cuDNN)."""


def classify_error(error: BaseException, is_device_lost: Callable[[], bool | None] = lambda: False) -> BackendError:
    """Return the BackendError, OutOfMemory or DeviceLost that an exception of the runtime means.

    `is_device_lost` queries the device itself, and returns None if that is impossible. It decides when the message is
    ambiguous: after an unrecoverable error, every further call returns that error, as CUDA's reference says. If the
    device cannot be queried, a kernel that could not be launched counts as a loss, because a process that keeps failing
    is worse than a restart; an "internal error" does not, because most concern a single graph.
    """
    text = str(error)
    message = f"The graph failed: {text.strip()}"
    if isinstance(error, MemoryError):
        return OutOfMemory(f"Out of memory: {text.strip() or 'MemoryError'}")
    if _reports_device_loss(text):
        return DeviceLost(message)
    if _OUT_OF_MEMORY.search(text):
        return OutOfMemory(message)
    is_lost = is_device_lost()
    if is_lost or (is_lost is None and _AMBIGUOUS.search(text)):
        return DeviceLost(message)
    return BackendError(message)


def _reports_device_loss(text: str) -> bool:
    code = _CUDA_ERROR_CODE.search(text)
    if code:
        return int(code[1]) in _LOST_CODES
    return "CUDA" in text and any(message in text for message in _LOST_MESSAGES)
