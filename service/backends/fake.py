"""A fake backend for tests: a Python function in place of a graph, with faults on demand.

    FakeBackend(lambda arrays: {"y": 2 * arrays["x"]})
    FakeBackend(function, faults=[out_of_memory(lambda arrays: len(arrays["x"]) > 4)])
    FakeBackend.wrap(backend, faults=[device_lost(), slow(0.05)])

A fault is a function that stands between the caller and the computation: it raises, waits, or calls the computation and
returns its outputs, changed or not. The functions below create the usual faults; a test may pass any other function.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from service.backends.base import Backend, BackendError, DeviceLost, OutOfMemory
from tasks.contract import Arrays, Run

Condition = Callable[[Arrays], bool]
"""Whether a fault applies to a run with these inputs."""
Fault = Callable[[Arrays, Run], Arrays]
"""Handles a run, given its inputs and the computation (which includes the faults later in the list)."""


def _always(arrays: Arrays) -> bool:  # noqa: ARG001 -- a Condition
    return True


@dataclass(eq=False)
class FakeBackend:
    """Computes outputs with a function, behind a list of faults.

    Attributes:
        function: from named inputs to named outputs, batch axis first.
        function_exclusive: the same for `run_exclusive`; by default `function`.
        device: name of the device. Models with the same device share its threads.
        provider, precision: as a backend states them.
        faults: applied in order, the first one outermost. May be changed at any time.
        in_use, free: the figures for memory, in bytes; None if unknown.
        on_release: called by `release`.
    """

    function: Run
    function_exclusive: Run | None = None
    device: str = "fake"
    provider: str = "FakeExecutionProvider"
    precision: str = "float32"
    faults: list[Fault] = field(default_factory=list)
    in_use: Callable[[], int | None] = lambda: None
    free: Callable[[], int | None] = lambda: None
    on_release: Callable[[], None] = lambda: None

    @classmethod
    def wrap(cls, backend: Backend, faults: Iterable[Fault] = ()) -> "FakeBackend":
        """Put faults in front of another backend; everything else is delegated to it."""
        return cls(
            backend.run,
            backend.run_exclusive,
            backend.device,
            backend.provider,
            backend.precision,
            list(faults),
            backend.memory_in_use,
            backend.memory_free,
            backend.release,
        )

    def run(self, arrays: Arrays) -> Arrays:
        """Compute the outputs, or fail as the faults say."""
        return _run_behind(self.faults, self.function, arrays)

    def run_exclusive(self, arrays: Arrays) -> Arrays:
        """Compute the outputs, or fail as the faults say."""
        return _run_behind(self.faults, self.function_exclusive or self.function, arrays)

    def release(self) -> None:
        """Call `on_release`."""
        self.on_release()

    def memory_in_use(self) -> int | None:
        """Return the figure of `in_use`."""
        return self.in_use()

    def memory_free(self) -> int | None:
        """Return the figure of `free`."""
        return self.free()


def _run_behind(faults: Iterable[Fault], function: Run, arrays: Arrays) -> Arrays:
    run = function
    for fault in reversed(list(faults)):
        run = _bind(fault, run)
    return run(arrays)


def _bind(fault: Fault, run: Run) -> Run:
    return lambda arrays: fault(arrays, run)


def failing(make_error: Callable[[], Exception], when: Condition = _always) -> Fault:
    """Make a fault that raises an error, a new one for each run."""

    def fault(arrays: Arrays, run: Run) -> Arrays:
        if when(arrays):
            raise make_error()
        return run(arrays)

    return fault


def backend_error(when: Condition = _always) -> Fault:
    """Make a fault that fails the run."""
    return failing(lambda: BackendError("The graph failed."), when)


def out_of_memory(when: Condition = _always) -> Fault:
    """Make a fault that fails the run for lack of memory."""
    return failing(lambda: OutOfMemory("The device is out of memory."), when)


def device_lost(when: Condition = _always) -> Fault:
    """Make a fault that loses the device."""
    return failing(lambda: DeviceLost("CUDA failure 700: an illegal memory access was encountered"), when)


def slow(seconds: float, when: Condition = _always) -> Fault:
    """Make a fault that adds to the duration of a run.

    A few milliseconds suffice to keep the service from running a model on its event loop, as it does with models that
    are cheaper than a thread hop.
    """

    def fault(arrays: Arrays, run: Run) -> Arrays:
        if when(arrays):
            time.sleep(seconds)
        return run(arrays)

    return fault


@dataclass(eq=False)
class Gate:
    """A fault that blocks runs while the gate is closed, as it is at first."""

    when: Condition = _always
    timeout_s: float | None = None
    """Time limit, so that a failing test ends: runs that are blocked longer raise TimeoutError. None for no limit."""
    _open: threading.Event = field(default_factory=threading.Event)

    def __call__(self, arrays: Arrays, run: Run) -> Arrays:
        """Block the run if the condition holds and the gate is closed."""
        if self.when(arrays) and not self._open.wait(self.timeout_s):
            raise TimeoutError(f"The gate was not opened within {self.timeout_s:g} s.")
        return run(arrays)

    @property
    def is_open(self) -> bool:
        """Whether runs are let through."""
        return self._open.is_set()

    def open(self) -> None:
        """Let the blocked runs continue, and all runs through from now on."""
        self._open.set()

    def close(self) -> None:
        """Block runs from now on."""
        self._open.clear()
