"""A backend that fails on command: it raises, hangs, runs out of memory, returns NaN or takes longer.

It is a fault in front of a real backend (`service/backends/fake.py`). What happens is attached to a sample by the
digest of its preprocessed values, so that a sample of any model can have a fault and nothing of it shows in the
request; it can also be attached to a whole graph. What has been run is recorded.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from service.backends.base import Backend, BackendError, DeviceLost, OpenBackend, OutOfMemory
from service.backends.fake import FakeBackend, Fault
from tasks.contract import Arrays, Run, TensorSpec, count_samples

Action = Literal["raise", "hold", "out_of_memory", "out_of_memory_in_batch", "lost", "corrupt", "slow"]
"""What happens to a run: `hold` lasts until it is released or its seconds are over, `slow` multiplies its time."""

_MAX_HOLD_SECONDS = 60.0
_MAX_RECORDS = 100_000


@dataclass(frozen=True)
class Mark:
    """A fault of a sample or a graph; `amount` is the seconds of `hold` and the factor of `slow`."""

    action: Action
    amount: float = 0.0


def sample_digest(arrays: Arrays, index: int) -> str:
    """Return a hash of the values of one sample of a stack."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name][index]).data)
    return digest.hexdigest()


def graph_digest(graph: bytes) -> str:
    """Return a hash of a graph's file."""
    return hashlib.sha256(graph).hexdigest()


@dataclass
class Faults:
    """The marks, and a record of what has been run; safe to use from any thread.

    Attributes:
        computed: for each sample, when its first run began (`time.monotonic`, seconds) and the number of its runs.
        runs: of each of the last runs, when it began and ended, and how many samples it had.
        held: how many runs are held now.
    """

    marks: dict[str, Mark] = field(default_factory=dict)
    computed: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)
    runs: list[tuple[float, float, int]] = field(default_factory=list)
    held: int = 0
    _released: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin_run(self, digests: list[str]) -> list[tuple[int, Mark]]:
        """Record that these samples are run now; return the marks among them, with their indices."""
        now = time.monotonic()
        with self._lock:
            for digest in digests:
                started_at, count = self.computed.get(digest, (now, 0))
                self.computed[digest] = (started_at, count + 1)
            while len(self.computed) > _MAX_RECORDS:
                self.computed.popitem(last=False)
            return [(i, self.marks[digest]) for i, digest in enumerate(digests) if digest in self.marks]

    def end_run(self, started_at: float, size: int) -> None:
        """Record a run that ends now."""
        with self._lock:
            self.runs.append((started_at, time.monotonic(), size))
            del self.runs[:-_MAX_RECORDS]

    def hold(self, seconds: float) -> None:
        """Wait until `release` is called, for at most `seconds`."""
        released = self._released
        with self._lock:
            self.held += 1
        released.wait(min(seconds, _MAX_HOLD_SECONDS))
        with self._lock:
            self.held -= 1

    def release(self) -> None:
        """Let all runs continue that are held now; later ones are held again."""
        self._released.set()
        self._released = threading.Event()

    def forget(self) -> None:
        """Clear the record of runs."""
        with self._lock:
            self.computed.clear()
            self.runs.clear()

    def of_graph(self, graph: str) -> Fault:
        """Return the fault of a backend: it looks for marked samples, and for a mark of the graph, in each run."""

        def fault(arrays: Arrays, run: Run) -> Arrays:
            size = count_samples(arrays)
            marks = self.begin_run([sample_digest(arrays, i) for i in range(size)])
            if graph_mark := self.marks.get(graph):
                marks.append((0, graph_mark))
            for _, mark in marks:
                _before_run(mark, size, self)
            started_at = time.monotonic()
            outputs = run(arrays)
            for index, mark in marks:
                outputs = _after_run(mark, index, outputs, time.monotonic() - started_at)
            self.end_run(started_at, size)
            return outputs

        return fault


def _before_run(mark: Mark, size: int, faults: Faults) -> None:
    match mark.action:
        case "raise":
            raise BackendError("This sample makes the graph fail.")
        case "lost":
            raise DeviceLost("CUDA error 700: an illegal memory access was encountered.")
        case "out_of_memory":
            raise OutOfMemory("This sample never fits into memory.")
        case "out_of_memory_in_batch" if size > 1:
            raise OutOfMemory("This sample fits into memory only in a batch of its own.")
        case "hold":
            faults.hold(mark.amount)


def _after_run(mark: Mark, index: int, outputs: Arrays, run_s: float) -> Arrays:
    if mark.action == "slow":
        time.sleep(run_s * (mark.amount - 1))
    if mark.action != "corrupt":
        return outputs
    return {name: _corrupted(array, index) for name, array in outputs.items()}


def _corrupted(array: np.ndarray[Any, Any], index: int) -> np.ndarray[Any, Any]:
    """Return a copy with NaN in all numbers of one sample."""
    if not np.issubdtype(array.dtype, np.floating):
        return array
    copy = array.copy()
    copy[index] = np.nan
    return copy


@dataclass(frozen=True)
class FaultyRuntime:
    """Opens graphs with the real runtime and wraps the backends."""

    real: OpenBackend
    faults: Faults

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Backend:
        """Open a graph; raises what the real runtime raises."""
        return FakeBackend.wrap(self.real(graph, inputs, outputs), [self.faults.of_graph(graph_digest(graph))])


def marks_from_json(marks: Mapping[str, Any]) -> dict[str, Mark]:
    """Return the marks of a command: {DIGEST: [ACTION, AMOUNT]}."""
    return {digest: Mark(action, float(amount)) for digest, (action, amount) in marks.items()}
