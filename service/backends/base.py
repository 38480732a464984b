"""One graph, loaded on one device."""

from typing import Protocol

from tasks.contract import Arrays, TensorSpec


class BackendError(RuntimeError):
    """The graph cannot be loaded, or not on the device that was asked for."""


class Backend(Protocol):
    """Runs a graph. `run` may be called from several threads at once."""

    @property
    def device(self) -> str:
        """Where it runs: 'cpu' or 'cuda'."""
        ...

    def run(self, arrays: Arrays) -> Arrays:
        """Named inputs to named outputs, the batch axis first."""
        ...


class OpenBackend(Protocol):
    """Loads the graph of a model; how the application is told which runtime there is."""

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Backend:
        """Raises BackendError where the graph cannot be read or has another signature than the task promises."""
        ...
