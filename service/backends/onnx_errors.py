"""What an error of ONNX Runtime means: only this run failed, there was no room for it, or the device is lost.

The runtime's exceptions say it in words only. Its CUDA provider writes "CUDA failure 700: an illegal memory access was
encountered ; GPU=0 ; …", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; …" or "CUDNN failure 5003: …" (its file
cuda_call.cc), and its arena "Failed to allocate memory for requested buffer of size …" (bfc_arena.cc).
"""

import re
from collections.abc import Callable

from service.backends.base import BackendError, DeviceLost, OutOfMemory

_CUDA_NUMBER = re.compile(r"CUDA (?:failure|error) (\d+)")
_NO_ROOM = re.compile(
    r"Failed to allocate memory|Available memory of \d+ is smaller|std::bad_alloc|bad allocation|bad_array_new_length"
    r"|CUDA (?:failure|error) 2:|cudaErrorMemoryAllocation|CUDA out of memory"
    r"|CU(?:BLAS|DNN|FFT|RAND|SPARSE)_STATUS_(?:ALLOC_FAILED|ALLOCATION_FAILED)|CUFFT_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_(?:HOST|DEVICE)_ALLOCATION_FAILED"
)
_STICKY = {
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
"""Errors after which CUDA does nothing more in a process, by number and as CUDA words them.

Of those from 700 on, the reference of the CUDA Runtime API (enum cudaError) says that the process is left in an
inconsistent state, that any further work returns the same error, and that the process must be terminated and launched
anew. Of 214 and 220 it says only that memory or a link has lost data, uncorrectably: what lies on the device may be
wrong from then on, and only a new process loads it again.
"""
_GONE = {
    46: "all CUDA-capable devices are busy or unavailable",
    100: "no CUDA-capable device is detected",
    101: "invalid device ordinal",
    999: "unknown error",
}
"""The device was there when the graph was loaded: a run that does not find it any more, or cannot say what has
happened, finds nothing that a process could mend (enum cudaError; the last is an unknown error inside the driver)."""
_LOST_NUMBERS = frozenset(_STICKY) | frozenset(_GONE)
_LOST_WORDS = tuple(_STICKY.values())
_UNCLEAR = re.compile(r"CU(?:BLAS|DNN)_STATUS_EXECUTION_FAILED")
"""A kernel could not be launched, for any of many reasons (cuBLAS and cuDNN, their lists of status codes)."""


def failure_of(error: BaseException, device_is_lost: Callable[[], bool | None] = lambda: False) -> BackendError:
    """The error of a backend that an error of the runtime is.

    `device_is_lost` asks the device itself, None where it cannot be asked. It has the last word on what the text leaves
    open: an error that CUDA cannot get over is returned by each call that follows, as its reference says. Where it
    cannot be asked, a kernel that could not be launched counts as a loss, since a process that does nothing but fail
    is worse than one that is started anew; an "internal error" does not, since most are about one graph.
    """
    text = str(error)
    message = f"The graph failed: {text.strip()}"
    if isinstance(error, MemoryError):
        return OutOfMemory(f"There was no memory for this run: {text.strip() or 'MemoryError'}")
    if _says_lost(text):
        return DeviceLost(message)
    if _NO_ROOM.search(text):
        return OutOfMemory(message)
    lost = device_is_lost()
    if lost or (lost is None and _UNCLEAR.search(text)):
        return DeviceLost(message)
    return BackendError(message)


def _says_lost(text: str) -> bool:
    number = _CUDA_NUMBER.search(text)
    if number:
        return int(number[1]) in _LOST_NUMBERS
    return "CUDA" in text and any(words in text for words in _LOST_WORDS)
