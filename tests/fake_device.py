"""A device on a virtual clock that several models share, with samples that break it in every way we know.

What a sample does is said by its first number: one of the poisons below, or nothing out of the ordinary.
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

FAILS, HANGS, NEVER_FITS, FITS_ALONE, FITS_QUITE_ALONE, CORRUPT, SLOW, LOSES = (-float(i) for i in range(1, 9))
"""The graph raises; it never comes back; no memory, ever; none with others in its batch; none while any other job runs;
the answer is NaN; it takes twice as long; the device is lost."""


@dataclass(eq=False)
class Run:
    """What the device was given."""

    model: str
    values: list[float]
    began: float
    bytes: int
    had_company: bool
    ended: float = float("inf")
    error: Exception | None = None


@dataclass
class FakeDevice:
    """Keeps a list of all it is given, and how much of it ran side by side."""

    runs: list[Run] = field(default_factory=list)
    running: set[Run] = field(default_factory=set)
    most_running: int = 0
    most_bytes: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)
    """What hangs comes back."""

    def begin(self, model: str, values: list[float], size_bytes: int) -> Run:
        now = asyncio.get_running_loop().time()
        for other in self.running:
            other.had_company = True
        run = Run(model, values, now, size_bytes, had_company=bool(self.running))
        self.runs.append(run)
        self.running.add(run)
        self.most_running = max(self.most_running, len(self.running))
        self.most_bytes = max(self.most_bytes, sum(one.bytes for one in self.running))
        return run

    def end(self, run: Run, error: Exception | None) -> None:
        run.ended, run.error = asyncio.get_running_loop().time(), error
        self.running.remove(run)


@dataclass(frozen=True)
class Speed:
    """What a batch takes: seconds and bytes of any, and for each of its samples."""

    fixed_s: float = 1.0
    each_s: float = 0.1
    each_bytes: int = 0
    fits: float = float("inf")
    """Samples in a batch, at most, that the device has room for, whatever was said of bytes."""

    def seconds(self, size: int) -> float:
        return self.fixed_s + self.each_s * size


class Model:
    """A model on the device: each sample's answer is ten times its number, and one."""

    def __init__(
        self,
        device: FakeDevice,
        scheduler: Scheduler,
        name: str = "model",
        *,
        speed: Speed | None = None,
        most: int = 8,
        delay_s: float = 0.0,
        curve: LatencyProfile | None = None,
    ) -> None:
        self.device, self.name, self.speed = device, name, speed or Speed()
        self.curve = curve or self.known_curve(most)
        self.dropped: list[int] = []
        self.batcher = Batcher(
            self._run,
            BatchPolicy(most, delay_s),
            scheduler,
            curve=self.curve,
            on_dropped=self.dropped.append,
            clock=asyncio.get_running_loop().time,
        )

    def known_curve(self, most: int) -> LatencyProfile:
        curve, shape = LatencyProfile(), shape_of(sample(0.0))
        for size in range(1, most + 1):
            curve.add(shape, size, self.speed.seconds(size))
        if self.speed.each_bytes:
            curve.took((1, self.speed.each_bytes), (2, 2 * self.speed.each_bytes))
        return curve

    async def ask(self, *values: float, due: float | None = None, until: float = float("inf")) -> list[float]:
        now = asyncio.get_running_loop().time()
        ran: BatchResult = await self.batcher.submit(sample(*values), Deadline(now if due is None else due, until))
        return ran.outputs["y"][:, 0].tolist()

    def asked(self, *values: float, due: float | None = None, until: float = float("inf")) -> asyncio.Task[list[float]]:
        return asyncio.create_task(self.ask(*values, due=due, until=until))

    async def _run(self, parts: Sequence[Arrays]) -> Arrays:
        values = np.concatenate([part["x"] for part in parts])[:, 0]
        run = self.device.begin(self.name, values.tolist(), self.speed.each_bytes * len(values))
        error: Exception | None = None
        try:
            if HANGS in values:
                await self.device.released.wait()
            await asyncio.sleep(self.speed.seconds(len(values)) * (2 if SLOW in values else 1))
            error = OutOfMemory("Too many.") if len(values) > self.speed.fits else _error_of(values.tolist(), run)
            if error is not None:
                raise error
        finally:
            self.device.end(run, error)
        return {"y": np.where(values == CORRUPT, np.nan, 10 * values + 1)[:, None]}


def _error_of(values: list[float], run: Run) -> Exception | None:
    if LOSES in values:
        return DeviceLost("The device is lost.")
    if (
        NEVER_FITS in values
        or (FITS_ALONE in values and len(values) > 1)
        or (FITS_QUITE_ALONE in values and (len(values) > 1 or run.had_company))
    ):
        return OutOfMemory("There is no room.")
    return BackendError("The graph raised.") if FAILS in values else None


def sample(*values: float) -> Arrays:
    return {"x": np.array(values, np.float64)[:, None]}


def right(*values: float) -> list[float]:
    """The answer to samples that nothing is wrong with."""
    return [10 * value + 1 for value in values]
