"""A runtime that does what the samples it is given are marked with: fail, hang, run out of memory, corrupt, slow down.

It wraps the real one. A mark is the digest of a pre-processed sample, so that any model's sample can carry one and
nothing of it shows in the request; a whole graph can be marked too. What is run is noted, to be asked for afterwards.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from service.backends.base import Backend, BackendError, DeviceLost, OpenBackend, OutOfMemory
from tasks.contract import Arrays, TensorSpec

Action = Literal["raise", "hold", "out_of_memory", "out_of_memory_in_company", "lost", "corrupt", "slow"]
"""What a mark asks for; `hold` until it is released or its seconds have passed, `slow` by its factor."""

_MAX_HOLD_SECONDS = 60.0
_REMEMBERED = 100_000


@dataclass(frozen=True)
class Mark:
    """What happens where a sample, or a graph, is met; `amount` is the seconds of `hold` and the factor of `slow`."""

    action: Action
    amount: float = 0.0


def sample_digest(arrays: Arrays, index: int) -> str:
    """The name of one sample of a stack: a hash of its values."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name][index]).data)
    return digest.hexdigest()


def graph_digest(graph: bytes) -> str:
    """The name of a graph: a hash of its file."""
    return hashlib.sha256(graph).hexdigest()


@dataclass
class Faults:
    """The marks, and what has been run. All methods may be called from any thread.

    Attributes:
        computed: of each sample that was run: when that run began (`time.monotonic`, seconds), and how often it was.
        runs: of the last runs: when it began and ended, and how many samples it had.
    """

    marks: dict[str, Mark] = field(default_factory=dict)
    computed: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)
    runs: list[tuple[float, float, int]] = field(default_factory=list)
    held: int = 0
    _released: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def met(self, names: list[str]) -> list[tuple[int, Mark]]:
        """Notes that these samples are run now; the marks among them, with their places."""
        now = time.monotonic()
        with self._lock:
            for name in names:
                first, times = self.computed.get(name, (now, 0))
                self.computed[name] = (first, times + 1)
            while len(self.computed) > _REMEMBERED:
                self.computed.popitem(last=False)
            return [(i, self.marks[name]) for i, name in enumerate(names) if name in self.marks]

    def ran(self, began: float, size: int) -> None:
        """Notes a run that has ended now."""
        with self._lock:
            self.runs.append((began, time.monotonic(), size))
            del self.runs[:-_REMEMBERED]

    def hold(self, seconds: float) -> None:
        """Waits until it is released, at most so long."""
        released = self._released
        self.held += 1
        released.wait(min(seconds, _MAX_HOLD_SECONDS))
        self.held -= 1

    def release(self) -> None:
        """Lets go of all that is held now; what is met from now on is held again."""
        self._released.set()
        self._released = threading.Event()

    def forget(self) -> None:
        """Forgets what has been run."""
        with self._lock:
            self.computed.clear()
            self.runs.clear()


@dataclass(frozen=True)
class FaultyBackend:
    """A backend that looks at the samples before it hands them on."""

    real: Backend
    faults: Faults
    name: str

    @property
    def device(self) -> str:
        return self.real.device

    def run(self, arrays: Arrays) -> Arrays:
        return self._run(self.real.run, arrays)

    def run_exclusive(self, arrays: Arrays) -> Arrays:
        return self._run(self.real.run_exclusive, arrays)

    def release(self) -> None:
        self.real.release()

    def memory_in_use(self) -> int | None:
        return self.real.memory_in_use()

    def memory_free(self) -> int | None:
        return self.real.memory_free()

    def _run(self, run: Callable[[Arrays], Arrays], arrays: Arrays) -> Arrays:
        size = len(next(iter(arrays.values())))
        met = self.faults.met([sample_digest(arrays, i) for i in range(size)])
        if of_graph := self.faults.marks.get(self.name):
            met.append((0, of_graph))
        for _, mark in met:
            _before(mark, size, self.faults)
        began = time.monotonic()
        outputs = run(arrays)
        for place, mark in met:
            outputs = _after(mark, place, outputs, time.monotonic() - began)
        self.faults.ran(began, size)
        return outputs


def _before(mark: Mark, size: int, faults: Faults) -> None:
    """What happens instead of the run, or before it."""
    match mark.action:
        case "raise":
            raise BackendError("A sample that makes the graph fail.")
        case "lost":
            raise DeviceLost("CUDA error 700: an illegal memory access was encountered.")
        case "out_of_memory":
            raise OutOfMemory("A sample for which there is never room.")
        case "out_of_memory_in_company" if size > 1:
            raise OutOfMemory("A sample for which there is room only where it is alone.")
        case "hold":
            faults.hold(mark.amount)


def _after(mark: Mark, place: int, outputs: Arrays, took_s: float) -> Arrays:
    """What happens to the outputs."""
    if mark.action == "slow":
        time.sleep(took_s * (mark.amount - 1))
    if mark.action != "corrupt":
        return outputs
    return {name: _corrupted(array, place) for name, array in outputs.items()}


def _corrupted(array: np.ndarray[Any, Any], place: int) -> np.ndarray[Any, Any]:
    """NaN in one sample's numbers."""
    if not np.issubdtype(array.dtype, np.floating):
        return array
    copy = array.copy()
    copy[place] = np.nan
    return copy


@dataclass(frozen=True)
class FaultyRuntime:
    """Opens graphs with the real runtime, and puts faults before them."""

    real: OpenBackend
    faults: Faults

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> FaultyBackend:
        """Raises what the real one raises."""
        return FaultyBackend(self.real(graph, inputs, outputs), self.faults, graph_digest(graph))


def marks_from(listed: Mapping[str, Any]) -> dict[str, Mark]:
    """Marks as they are sent: {digest: [action, amount]}."""
    return {digest: Mark(action, float(amount)) for digest, (action, amount) in listed.items()}
