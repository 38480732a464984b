"""The interface of a backend: one graph, loaded on one device."""

from typing import Protocol

from tasks.contract import Arrays, TensorSpec


class BackendError(RuntimeError):
    """The graph or the requested device cannot be loaded, or the graph failed on its inputs."""


class OutOfMemory(BackendError):
    """The device had too little memory for this run; a smaller batch may fit."""


class DeviceLost(BackendError):
    """The device cannot be used again until the process restarts."""


class Backend(Protocol):
    """Runs a graph. All methods may be called from several threads at a time."""

    @property
    def device(self) -> str:
        """The device the graph runs on: 'cpu' or 'cuda'."""
        ...

    @property
    def provider(self) -> str:
        """What really computes, in the runtime's words: 'CPUExecutionProvider' or 'CUDAExecutionProvider'."""
        ...

    @property
    def precision(self) -> str:
        """The type of most of the graph's weights: 'float32', 'float16' or 'int8', or 'unknown'."""
        ...

    def run(self, arrays: Arrays) -> Arrays:
        """Compute the outputs of a batch, by name, batch axis first. Other runs may share the device."""
        ...

    def run_exclusive(self, arrays: Arrays) -> Arrays:
        """Compute the outputs of a batch with minimum latency; no other run should share the device."""
        ...

    def release(self) -> None:
        """Free memory that was reserved for runs larger than those expected from now on."""
        ...

    def memory_in_use(self) -> int | None:
        """Return the bytes in use: by this process on a CPU, by all processes on a GPU; None if unknown."""
        ...

    def memory_free(self) -> int | None:
        """Return the bytes that are still available on the device; None if unknown."""
        ...

    def memory_total(self) -> int | None:
        """Return the bytes that the device has, or that this process may use of them; None if unknown."""
        ...


class OpenBackend(Protocol):
    """Loads a graph: the runtime that the application is given."""

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Backend:
        """Load a graph. Raises BackendError if it cannot be read or has other inputs or outputs than the task."""
        ...


class Runtime(OpenBackend, Protocol):
    """A runtime for one device, which may not be available."""

    @property
    def description(self) -> str:
        """Name and version of the runtime."""
        ...

    def check(self) -> None:
        """Raise BackendError if the requested device is not available. To be called before models are loaded."""
        ...

    def cuda_problem(self) -> str | None:
        """Return why CUDA cannot be used, as the end of a sentence and what to do; None if it can."""
        ...
