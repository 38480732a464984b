"""One graph, loaded on one device."""

from typing import Protocol

from tasks.contract import Arrays, TensorSpec


class BackendError(RuntimeError):
    """The graph cannot be loaded, or not on the device that was asked for; or it failed on its inputs."""


class OutOfMemory(BackendError):
    """The device had no room for this run; a smaller one may still fit."""


class DeviceLost(BackendError):
    """Nothing will run on this device again until the process starts anew."""


class Backend(Protocol):
    """Runs a graph; from several threads at once, if need be."""

    @property
    def device(self) -> str:
        """Where it runs: 'cpu' or 'cuda'."""
        ...

    def run(self, arrays: Arrays) -> Arrays:
        """Named inputs to named outputs, the batch axis first; one of several runs that share the device."""
        ...

    def run_exclusive(self, arrays: Arrays) -> Arrays:
        """The same, for a run that has the device to itself and wants its answer soon."""
        ...

    def release(self) -> None:
        """Gives back memory that was needed for larger runs than are to be expected from now on."""
        ...

    def memory_in_use(self) -> int | None:
        """Bytes that are held on the device: by this process on a CPU, by all on a GPU; None where it is not known."""
        ...

    def memory_free(self) -> int | None:
        """Bytes that could still be had on the device; None where it is not known."""
        ...


class OpenBackend(Protocol):
    """Loads the graph of a model; how the application is told which runtime there is."""

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Backend:
        """Raises BackendError where the graph cannot be read or has another signature than the task promises."""
        ...
