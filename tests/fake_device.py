"""A fake device on the virtual clock, shared by several models, that can fail in every way a real one does.

The value of a sample decides what happens: one of the poisons below, or a normal run for any other value.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from service.backends.base import BackendError, DeviceLost, OutOfMemory
from service.engine.batcher import Batcher, BatchPolicy, BatchResult
from service.engine.latency import LatencyProfile, shape_of
from service.engine.scheduler import Deadline, Scheduler
from tasks.contract import Arrays
from tests.virtual_clock import now

FAILS = -1.0
"""The graph raises an error."""
HANGS = -2.0
"""The run does not end until the device is released."""
NEVER_FITS = -3.0
"""Out of memory, always."""
FITS_UNBATCHED = -4.0
"""Out of memory unless it is the only sample of its batch."""
FITS_EXCLUSIVELY = -5.0
"""Out of memory unless it is the only sample of its batch and no other batch runs."""
CORRUPT = -6.0
"""The output is NaN."""
SLOW = -7.0
"""The batch takes twice as long."""
LOSES_DEVICE = -8.0
"""The device fails for good."""


@dataclass(eq=False)
class Run:
    """A batch that the device was given."""

    model: str
    values: list[float]
    started_at: float
    memory_bytes: int
    overlapped: bool
    """Whether another batch ran at the same time."""
    ended_at: float = float("inf")
    error: Exception | None = None


@dataclass
class FakeDevice:
    """Records every run, and how many ran at the same time."""

    runs: list[Run] = field(default_factory=list)
    running: set[Run] = field(default_factory=set)
    max_running: int = 0
    max_bytes: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """Ends the runs that hang."""

    def start(self, model: str, values: list[float], memory_bytes: int) -> Run:
        for running in self.running:
            running.overlapped = True
        run = Run(model, values, now(), memory_bytes, overlapped=bool(self.running))
        self.runs.append(run)
        self.running.add(run)
        self.max_running = max(self.max_running, len(self.running))
        self.max_bytes = max(self.max_bytes, sum(running.memory_bytes for running in self.running))
        return run

    def end(self, run: Run, error: Exception | None) -> None:
        run.ended_at, run.error = now(), error
        self.running.remove(run)


@dataclass(frozen=True)
class Speed:
    """What a batch costs: fixed seconds, and seconds and bytes per sample."""

    fixed_s: float = 1.0
    per_sample_s: float = 0.1
    bytes_per_sample: int = 0
    max_size: float = float("inf")
    """Larger batches run out of memory, whatever was measured."""

    def seconds(self, size: int) -> float:
        return self.fixed_s + self.per_sample_s * size


class FakeModel:
    """A model on the device: its output for a sample is ten times the value, plus one.

    Its latency profile knows from the start what batches cost.
    """

    def __init__(
        self,
        device: FakeDevice,
        scheduler: Scheduler,
        name: str = "model",
        *,
        speed: Speed | None = None,
        max_size: int = 8,
    ) -> None:
        self.device, self.name, self.speed = device, name, speed or Speed()
        self.profile = self._measured_profile(max_size)
        self.dropped: list[int] = []
        self.batcher = Batcher(
            self._run,
            BatchPolicy(max_size),
            scheduler,
            latency_profile=self.profile,
            on_dropped=self.dropped.append,
            clock=asyncio.get_running_loop().time,
        )

    def _measured_profile(self, max_size: int) -> LatencyProfile:
        profile, shape = LatencyProfile(), shape_of(sample(0.0))
        for size in range(1, max_size + 1):
            profile.record(shape, size, self.speed.seconds(size))
        if self.speed.bytes_per_sample:
            profile.fit_memory((1, self.speed.bytes_per_sample), (2, 2 * self.speed.bytes_per_sample))
        return profile

    async def predict(self, *values: float, target: float | None = None, limit: float = float("inf")) -> list[float]:
        """Send a request of these samples; by default it is due now."""
        deadline = Deadline(now() if target is None else target, limit)
        result: BatchResult = await self.batcher.submit(sample(*values), deadline)
        return result.outputs["y"][:, 0].tolist()

    def start_predict(
        self, *values: float, target: float | None = None, limit: float = float("inf")
    ) -> asyncio.Task[list[float]]:
        """Send a request in the background."""
        return asyncio.create_task(self.predict(*values, target=target, limit=limit))

    async def _run(self, parts: Sequence[Arrays]) -> Arrays:
        values = np.concatenate([part["x"] for part in parts])[:, 0]
        run = self.device.start(self.name, values.tolist(), self.speed.bytes_per_sample * len(values))
        error: Exception | None = None
        try:
            if HANGS in values:
                await self.device.released.wait()
            await asyncio.sleep(self.speed.seconds(len(values)) * (2 if SLOW in values else 1))
            if len(values) > self.speed.max_size:
                error = OutOfMemory("The batch is too large.")
            else:
                error = _error_for(values.tolist(), run)
            if error is not None:
                raise error
        finally:
            self.device.end(run, error)
        return {"y": np.where(values == CORRUPT, np.nan, 10 * values + 1)[:, None]}


def _error_for(values: list[float], run: Run) -> Exception | None:
    if LOSES_DEVICE in values:
        return DeviceLost("The device is lost.")
    if (
        NEVER_FITS in values
        or (FITS_UNBATCHED in values and len(values) > 1)
        or (FITS_EXCLUSIVELY in values and (len(values) > 1 or run.overlapped))
    ):
        return OutOfMemory("The sample does not fit.")
    return BackendError("The graph raised.") if FAILS in values else None


def sample(*values: float) -> Arrays:
    """Return samples with these values, stacked."""
    return {"x": np.array(values, np.float64)[:, None]}


def expected(*values: float) -> list[float]:
    """Return the outputs for samples with these values."""
    return [10 * value + 1 for value in values]


async def end_of(task: asyncio.Task[list[float]]) -> tuple[float, object]:
    """Wait for a request; return when it ended, and its outputs or its error."""
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    return now(), outcome
