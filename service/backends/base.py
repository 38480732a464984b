"""One graph, loaded on one device."""

from typing import Protocol

from tasks.contract import Arrays, TensorSpec


class BackendError(RuntimeError):
    """The graph cannot be loaded, or not on the device that was asked for."""


class Backend(Protocol):
    """Runs a graph; from several threads at once, if need be."""

    @property
    def device(self) -> str:
        """Where it runs: 'cpu' or 'cuda'."""
        ...

    def run(self, arrays: Arrays) -> Arrays:
        """Named inputs to named outputs, the batch axis first; one of several runs that share the device."""
        ...

    def run_alone(self, arrays: Arrays) -> Arrays:
        """The same, for a run that has the device to itself and wants its answer soon."""
        ...

    def release(self) -> None:
        """Gives back memory that was needed for larger runs than are to be expected from now on."""
        ...


class OpenBackend(Protocol):
    """Loads the graph of a model; how the application is told which runtime there is."""

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Backend:
        """Raises BackendError where the graph cannot be read or has another signature than the task promises."""
        ...
