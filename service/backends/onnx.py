"""Graphs on ONNX Runtime, on the CPU or on a CUDA device."""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from service.backends.base import BackendError
from service.backends.memory import CudaMemory, MainMemory, Memory
from service.backends.onnx_errors import failure_of
from tasks.contract import Arrays, TensorSpec

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
}
# HEURISTIC: the default search tries every algorithm for each new shape, seconds each. kSameAsRequested: the arena
# grows by what is needed and not by powers of two, which it would never give back.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
# A graph of one Identity, as ONNX (IR 8, opset 13): the least that a session can be made of.
_IDENTITY = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ort.InferenceSession:
    """Gives the sessions of this process one pool of memory for what runs compute; a session that can shrink it.

    A session's own pool stays as large as its largest run was. Models are seldom asked all at once, and then one pool
    for all is far smaller than one for each.
    """
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(where, None)
    return ort.InferenceSession(_IDENTITY, _options(threads=1), providers=[_CPU])


def _options(*, threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # A spinning thread takes its core from those that decode the next requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 3
    return options


@dataclass(frozen=True)
class OnnxBackend:
    """A graph in ONNX Runtime sessions.

    On a CPU there are two: in one a run has every core, in the other a single one. Runs side by side on a core each
    do more together than runs that share all cores, where each thread waits for the others after every operation.
    """

    session: ort.InferenceSession
    session_alone: ort.InferenceSession
    output_names: tuple[str, ...]
    device: str
    memory: Memory

    def memory_in_use(self) -> int | None:
        """The resident set of this process on a CPU; all that is taken on a CUDA device."""
        return self.memory.in_use()

    def memory_free(self) -> int | None:
        """What the computer, or the CUDA device, has left."""
        return self.memory.free()

    def run(self, arrays: Arrays) -> Arrays:
        """Named inputs to named outputs, the batch axis first; on one core where the device is a CPU."""
        return self._run(self.session, arrays)

    def run_exclusive(self, arrays: Arrays) -> Arrays:
        """The same on every core."""
        return self._run(self.session_alone, arrays)

    def release(self) -> None:
        """Gives back the memory that no run needs now: of the pool of all sessions, and what loading has left over.

        The next run pays for it once more, some hundredths of a second where it needs much.
        """
        shrinking = ort.RunOptions()
        shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        _pool().run(None, {"x": np.zeros(1, np.float32)}, shrinking)
        # glibc keeps what was freed, and there is much of it: the files, and the graphs before they were optimised.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda kept: None)(0)

    def _run(self, session: ort.InferenceSession, arrays: Arrays) -> Arrays:
        try:
            outputs = session.run(self.output_names, dict(arrays))
        except Exception as error:  # The runtime's exceptions have no common ancestor but this.
            raise failure_of(error, self.memory.is_lost) from error
        return dict(zip(self.output_names, outputs, strict=True))


@dataclass(frozen=True)
class OnnxRuntime:
    """Opens graphs on the device that was asked for.

    Attributes:
        device: 'auto' takes CUDA where it is; 'cuda' raises BackendError where it is not.
        threads: on the CPU, of a run that is alone; 0 for one a core.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        _pool()  # Now, in one thread: there is one for the process, before its first session.

    def check(self) -> None:
        """Raises BackendError where the device that was asked for is not there; to be called before serving."""
        if self.device != "cuda":
            return
        if _CUDA not in ort.get_available_providers():
            raise BackendError(
                "CUDA was asked for and this build of onnxruntime has none of it: install onnxruntime-gpu "
                "(`make serve GPU=1`), or choose --device auto or cpu."
            )
        # To be built for CUDA is not to find a device, a driver and the libraries: only a session tells.
        if self._session(_IDENTITY, threads=1).get_providers()[0] != _CUDA:
            raise BackendError(
                "CUDA was asked for and onnxruntime cannot use it here: there is no device, or the driver or a library "
                "(cuDNN, cuBLAS) is missing. Choose --device auto or cpu to serve without it."
            )

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> OnnxBackend:
        """Loads a graph. From bytes: a path to data outside the model's folder leads nowhere."""
        session = self._session(graph, threads=1)
        on_cuda = session.get_providers()[0] == _CUDA
        if self.device == "cuda" and not on_cuda:
            # ONNX Runtime falls back to the CPU and only prints a warning.
            raise BackendError("CUDA was asked for and cannot be used: see the log for the library that is missing.")
        _check_signature("input", session.get_inputs(), inputs)
        _check_signature("output", session.get_outputs(), outputs)
        threads = self.threads or available_cores()
        alone = session if on_cuda or threads == 1 else self._session(graph, threads=threads)
        names = tuple(spec.name for spec in outputs)
        if on_cuda:
            return OnnxBackend(session, alone, names, "cuda", CudaMemory())
        return OnnxBackend(session, alone, names, "cpu", MainMemory())

    def _session(self, graph: bytes, *, threads: int) -> ort.InferenceSession:
        options = _options(threads=threads)
        providers: list[Any] = [_CPU]
        if self.device != "cpu" and _CUDA in ort.get_available_providers():
            ort.preload_dlls()
            providers.insert(0, (_CUDA, _CUDA_OPTIONS))
        try:
            return ort.InferenceSession(graph, options, providers=providers)
        except Exception as error:  # As in `run`.
            raise BackendError(f"The graph cannot be loaded: {error}") from None


def _check_signature(kind: str, found: Sequence[Any], promised: tuple[TensorSpec, ...]) -> None:
    got = {tensor.name: tensor for tensor in found}
    if set(got) != {spec.name for spec in promised}:
        names = ", ".join(spec.name for spec in promised)
        raise BackendError(f"The graph's {kind}s are {', '.join(got)}; the task promises {names}.")
    for spec in promised:
        tensor = got[spec.name]
        shape = tensor.shape[1:]
        same = len(shape) == len(spec.shape) and all(
            isinstance(wanted, str) or not isinstance(length, int) or wanted == length
            for wanted, length in zip(spec.shape, shape, strict=True)
        )
        if not same or _DTYPES.get(tensor.type) != spec.dtype:
            raise BackendError(
                f"The graph's {kind} {spec.name} is {tensor.type} {tensor.shape}; "
                f"the task promises {spec.dtype} {['batch', *spec.shape]}."
            )
