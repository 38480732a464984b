"""The TorchScript backend, on the CPU or a CUDA device. It needs torch.

A TorchScript file is a program. It may call any operator of torch, including those that read and write files, already
while it is loaded, and nothing confines it. The setting `backend` therefore has to ask for it, for models whose
publisher is trusted like the author of a program.
"""

import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from service.backends.base import BackendError, OutOfMemory
from service.backends.cores import available_cores
from service.backends.cuda_libraries import gpu_is_visible
from service.backends.memory import CudaMemory, DeviceMemory, HostMemory, trim_heap
from service.backends.onnx_errors import classify_error
from tasks.contract import Array, Arrays, TensorSpec

_LOG = logging.getLogger(__name__)
_OUT_OF_MEMORY = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory|CUDA error: out of memory")
"""What the allocators of torch write (c10/core/impl/alloc_cpu.cpp; CUDA's own message)."""


@dataclass(frozen=True)
class TorchScriptBackend:
    """A loaded TorchScript module.

    Attributes:
        module: from tensors of the inputs, in the task's order, to a tensor or a tuple of tensors: the outputs, in the
            task's order.
        inputs: the tensors that it is given.
        outputs: the tensors that it must return.
        device: 'cpu' or 'cuda'.
        memory: the memory of that device.
        threads: CPU threads of an exclusive run; all other runs use one, as those of the ONNX Runtime backend do.
        precision: the type of most of the weights.
    """

    module: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    device: str
    memory: DeviceMemory
    threads: int
    precision: str

    @property
    def provider(self) -> str:
        """What computes: torch's interpreter of TorchScript."""
        return "TorchScript"

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
        return self._run(arrays, threads=1)

    def run_exclusive(self, arrays: Arrays) -> Arrays:
        """Compute the outputs of a batch; on a CPU with all cores."""
        return self._run(arrays, threads=self.threads)

    def release(self) -> None:
        """Free what earlier runs have left in memory; on a CUDA device, what torch's allocator keeps."""
        if self.device == "cuda":
            torch.cuda.empty_cache()
        trim_heap()

    def _run(self, arrays: Arrays, *, threads: int) -> Arrays:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)  # With OpenMP, of the calling thread only (ATen/ParallelOpenMP.cpp).
        try:
            with torch.inference_mode():
                outputs = self.module(*(self._tensor(arrays[spec.name]) for spec in self.inputs))
                tensors = outputs if isinstance(outputs, tuple | list) else (outputs,)
                results = [tensor.cpu().numpy() for tensor in tensors]
        except Exception as error:  # The exceptions of the interpreter have no other common base class.
            raise _classify(error, self.memory.is_lost) from error
        return self._named(results)

    def _tensor(self, array: Array) -> torch.Tensor:
        # torch has no read-only tensors, and warns of arrays that are.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self.device)

    def _named(self, results: list[Array]) -> Arrays:
        """Return the outputs by name. Raises BackendError if they are not those of the task.

        A TorchScript file does not state their types and shapes, so that they cannot be checked before a run.
        """
        if len(results) != len(self.outputs):
            names = ", ".join(spec.name for spec in self.outputs)
            raise BackendError(f"The graph returns {len(results)} tensors; the task requires {names}.")
        for spec, result in zip(self.outputs, results, strict=True):
            if mismatch := spec.mismatch(result):
                raise BackendError(f"The graph's output {mismatch}, as the task requires.")
        return {spec.name: result for spec, result in zip(self.outputs, results, strict=True)}


def _classify(error: Exception, is_device_lost: Callable[[], bool | None]) -> BackendError:
    if isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return OutOfMemory(f"The graph failed: {str(error).strip()}")
    return classify_error(error, is_device_lost)


@dataclass(frozen=True)
class TorchScriptRuntime:
    """Opens TorchScript files with torch.

    Attributes:
        device: 'auto' uses CUDA if it is available; 'cuda' raises BackendError if it is not.
        threads: CPU threads of an exclusive run; 0 for all cores.
        has_cuda: whether torch can use a CUDA device.
        has_gpu: whether a GPU is visible.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    has_cuda: Callable[[], bool] = torch.cuda.is_available
    has_gpu: Callable[[], bool] = gpu_is_visible

    def __post_init__(self) -> None:
        # Since 2.11, torch warns that TorchScript will not be developed further.
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated")

    @property
    def description(self) -> str:
        """Name and version of the runtime."""
        return f"torch {torch.__version__}"

    def check(self) -> None:
        """Raise BackendError if the requested device is not available. To be called before models are loaded.

        If there is a GPU that 'auto' cannot use, that is logged.
        """
        if self.device == "cpu" or (problem := self.cuda_problem()) is None:
            return
        if self.device == "cuda":
            raise BackendError(f"CUDA was requested, but {problem} Use --device auto or cpu to serve without it.")
        if self.has_gpu():
            _LOG.warning("a GPU is visible but not used", extra={"fields": {"reason": problem}})

    def cuda_problem(self) -> str | None:
        """Return why torch cannot use CUDA, as the end of a sentence and what to do; None if it can."""
        if self.has_cuda():
            return None
        if torch.version.cuda is None:
            return "this build of torch does not support it. Install one for CUDA (see pytorch.org)."
        return (
            f"torch cannot use it. The driver may be too old for CUDA {torch.version.cuda}, or no device is visible: "
            "compare with the output of nvidia-smi."
        )

    def __call__(
        self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> TorchScriptBackend:
        """Load a module, and run its code. Raises BackendError if it cannot be read or takes other inputs."""
        on_cuda = self.device == "cuda" or (self.device == "auto" and self.has_cuda())
        device, memory = ("cuda", CudaMemory()) if on_cuda else ("cpu", HostMemory())
        try:
            module = torch.jit.load(io.BytesIO(graph), map_location=device)  # type: ignore[no-untyped-call]
            count = len(module.forward.schema.arguments) - 1  # The first one is the module.
            precision = _precision_of(module)
        except Exception as error:  # As in `run`.
            raise BackendError(f"The graph cannot be loaded: {error}") from None
        if count != len(inputs):
            names = ", ".join(spec.name for spec in inputs)
            raise BackendError(f"The graph takes {count} inputs; the task requires {names}.")
        threads = self.threads or available_cores()
        return TorchScriptBackend(module, inputs, outputs, device, memory, threads, precision)


def _precision_of(module: Any) -> str:
    """Return the type of most of the weights, by their bytes; those of a frozen module are constants of its graph."""
    sizes: Counter[str] = Counter()
    constants = [
        node.t("value")
        for node in module.graph.findAllNodes("prim::Constant")
        if node.hasAttribute("value") and node.kindOf("value") == "t"
    ]
    for tensor in (*module.parameters(), *constants):
        if tensor.is_floating_point():
            sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    return max(sizes, key=lambda precision: sizes[precision], default="unknown")
