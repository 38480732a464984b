"""The ONNX Runtime backend, on the CPU or a CUDA device."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from service.backends.base import BackendError
from service.backends.cores import available_cores
from service.backends.cuda_libraries import explain_missing, gpu_is_visible, missing_cuda_libraries
from service.backends.memory import CudaMemory, DeviceMemory, HostMemory, trim_heap
from service.backends.onnx_errors import classify_error
from service.backends.onnx_precision import precision_of
from tasks.contract import Arrays, TensorSpec

_LOG = logging.getLogger(__name__)
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
# HEURISTIC: the default search tries every algorithm for each new shape, which takes seconds. kSameAsRequested: the
# arena grows by the size requested; powers of two would never be returned.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
# A graph with a single Identity node (ONNX IR 8, opset 13): the smallest one that a session accepts.
_IDENTITY_GRAPH = bytes.fromhex(
    "080812003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)


def onnxruntime_version() -> str:
    """Return the version of ONNX Runtime."""
    version: str = ort.__version__
    return version


@cache
def _shared_arena() -> ort.InferenceSession:
    """Register one memory arena for the runs of all sessions in this process; return a session that can shrink it.

    An arena of its own would stay as large as a session's largest run. Since models seldom run all at once, one shared
    arena is far smaller than one per session.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)
    return ort.InferenceSession(_IDENTITY_GRAPH, _session_options(threads=1), providers=[_CPU])


@cache
def _preload_libraries() -> None:
    """Load the libraries of CUDA that are installed as Python packages, where the system's loader would not look."""
    ort.preload_dlls()


def _session_options(*, threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # A spinning thread would occupy a core that is needed to decode the next requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    # A pattern is a plan for a run's memory as a single block, made in the first run of each shape. The block comes on
    # top of what that run has left in the arena: the second run would double it, after it was measured. Without
    # patterns, runs take 1 to 2 % longer (4 microseconds for the smallest models).
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return options


@dataclass(frozen=True)
class OnnxBackend:
    """A graph in ONNX Runtime sessions.

    On a CPU there are two: `session` uses a single core per run, `exclusive_session` uses all cores. Concurrent runs on
    one core each have a higher throughput than runs that share all cores, whose threads wait for each other after every
    operation.
    """

    session: ort.InferenceSession
    exclusive_session: ort.InferenceSession
    output_names: tuple[str, ...]
    device: str
    memory: DeviceMemory
    precision: str = "unknown"

    @property
    def provider(self) -> str:
        """What really computes: ONNX Runtime falls back to the CPU, graph by graph."""
        name: str = self.session.get_providers()[0]
        return name

    def memory_in_use(self) -> int | None:
        """Return the resident set size of this process on a CPU, or the bytes in use on a CUDA device."""
        return self.memory.in_use()

    def memory_free(self) -> int | None:
        """Return the free bytes of the machine or the CUDA device."""
        return self.memory.free()

    def memory_total(self) -> int | None:
        """Return the bytes of the machine, or of its control group, or of the CUDA device."""
        return self.memory.total()

    def run(self, arrays: Arrays) -> Arrays:
        """Compute the outputs of a batch; on a CPU with one core."""
        return self._run(self.session, arrays)

    def run_exclusive(self, arrays: Arrays) -> Arrays:
        """Compute the outputs of a batch; on a CPU with all cores."""
        return self._run(self.exclusive_session, arrays)

    def release(self) -> None:
        """Free the memory of the shared arena that no run is using, and what loading has left behind.

        The next run allocates again, which takes some hundredths of a second if it needs much memory.
        """
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        _shared_arena().run(None, {"x": np.zeros(1, np.float32)}, options)
        trim_heap()  # There is much to return: model files, and graphs before optimisation.

    def _run(self, session: ort.InferenceSession, arrays: Arrays) -> Arrays:
        try:
            outputs = session.run(self.output_names, dict(arrays))
        except Exception as error:  # The runtime's exceptions have no other common base class.
            raise classify_error(error, self.memory.is_lost) from error
        return dict(zip(self.output_names, outputs, strict=True))


@dataclass(frozen=True)
class OnnxRuntime:
    """Opens graphs with ONNX Runtime.

    Attributes:
        device: 'auto' uses CUDA if it is available; 'cuda' raises BackendError if it is not.
        threads: CPU threads of an exclusive run; 0 for all cores.
        open_session: opens a graph; its session may use another provider than it was asked for.
        available_providers: returns what this build of ONNX Runtime contains.
        find_missing: returns the libraries that keep it from using CUDA.
        has_gpu: whether a GPU is visible.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    open_session: Callable[..., ort.InferenceSession] = ort.InferenceSession
    available_providers: Callable[[], Sequence[str]] = ort.get_available_providers
    find_missing: Callable[[], list[str]] = lambda: missing_cuda_libraries(Path(ort.__file__).parent / "capi")
    has_gpu: Callable[[], bool] = gpu_is_visible

    def __post_init__(self) -> None:
        _shared_arena()  # It must be registered before the first session, by one thread.

    @property
    def description(self) -> str:
        """Name and version of the runtime."""
        return f"ONNX Runtime {onnxruntime_version()}"

    def check(self) -> None:
        """Raise BackendError if the requested device is not available. To be called before models are loaded.

        If there is a GPU that 'auto' cannot use, that is logged.
        """
        if self.device == "cuda":
            problem = self.cuda_problem()
            if problem is not None:
                raise BackendError(f"CUDA was requested, but {problem} Use --device auto or cpu to serve without it.")
        elif self.device == "auto" and self.has_gpu() and (problem := self.cuda_problem()) is not None:
            _LOG.warning(
                "a GPU is visible but not used", extra={"fields": {"reason": f"{problem[:1].upper()}{problem[1:]}"}}
            )

    def expected_device(self) -> Literal["cpu", "cuda"]:
        """Return the device that graphs are going to run on."""
        if self.device == "cpu" or _CUDA not in self.available_providers():
            return "cpu"
        return "cuda" if self.cuda_problem() is None else "cpu"

    def cuda_problem(self) -> str | None:
        """Return why CUDA cannot be used, as the end of a sentence and what to do; None if it can."""
        if _CUDA not in self.available_providers():
            return (
                "this build of onnxruntime does not support it. Install onnxruntime-gpu in place of onnxruntime "
                "(`make serve GPU=1`)."
            )
        # Whether there is a device, a driver and the libraries only shows when a session is created.
        if self._session(_IDENTITY_GRAPH, threads=1).get_providers()[0] == _CUDA:
            return None
        explanation = explain_missing(self.find_missing()) or (
            "No library is missing, so the driver may be too old for this version of CUDA, or no device is visible: "
            "compare with the output of nvidia-smi."
        )
        return f"onnxruntime cannot use it. {explanation}"

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> OnnxBackend:
        """Load a graph. It is given as bytes so that it cannot refer to files outside its model folder."""
        session = self._session(graph, threads=1)
        on_cuda = session.get_providers()[0] == _CUDA
        if self.device == "cuda" and not on_cuda:
            # ONNX Runtime falls back to the CPU and only prints a warning.
            explanation = explain_missing(self.find_missing())
            raise BackendError(f"CUDA was requested, but this graph would run on the CPU. {explanation}".strip())
        _check_signature("input", session.get_inputs(), inputs)
        _check_signature("output", session.get_outputs(), outputs)
        threads = self.threads or available_cores()
        exclusive_session = session if on_cuda or threads == 1 else self._session(graph, threads=threads)
        names, precision = tuple(spec.name for spec in outputs), precision_of(graph)
        if on_cuda:
            return OnnxBackend(session, exclusive_session, names, "cuda", CudaMemory(), precision)
        return OnnxBackend(session, exclusive_session, names, "cpu", HostMemory(), precision)

    def _session(self, graph: bytes, *, threads: int) -> ort.InferenceSession:
        options = _session_options(threads=threads)
        providers: list[Any] = [_CPU]
        if self.device != "cpu" and _CUDA in self.available_providers():
            _preload_libraries()
            providers.insert(0, (_CUDA, _CUDA_OPTIONS))
        try:
            return self.open_session(graph, options, providers=providers)
        except Exception as error:  # As in `run`.
            raise BackendError(f"The graph cannot be loaded: {error}") from None


def _check_signature(kind: str, actual: Sequence[Any], expected: tuple[TensorSpec, ...]) -> None:
    tensors = {tensor.name: tensor for tensor in actual}
    if set(tensors) != {spec.name for spec in expected}:
        names = ", ".join(spec.name for spec in expected)
        raise BackendError(f"The graph's {kind}s are {', '.join(tensors)}; the task requires {names}.")
    for spec in expected:
        tensor = tensors[spec.name]
        shape = tensor.shape[1:]
        shapes_match = len(shape) == len(spec.shape) and all(
            isinstance(expected_length, str) or not isinstance(length, int) or expected_length == length
            for expected_length, length in zip(spec.shape, shape, strict=True)
        )
        if not shapes_match or _DTYPES.get(tensor.type) != spec.dtype:
            raise BackendError(
                f"The graph's {kind} {spec.name} is {tensor.type} {tensor.shape}; "
                f"the task requires {spec.dtype} {['batch', *spec.shape]}."
            )
