"""Bugs in a source or a job are reported and do not stop other work; on the virtual clock."""

import asyncio
import math

import numpy as np
import pytest

from service.engine.scheduler import Capacity, InsufficientMemory, Job, NextWork, Scheduler
from tests.fake_device import FakeDevice, FakeModel, expected
from tests.virtual_clock import run_virtually


class FaultySource:
    """A source with the most urgent work, one of whose methods raises."""

    def __init__(self, method: str) -> None:
        self.faulty_method = method

    def next_work(self) -> NextWork | None:
        self._raise_if_faulty("next_work")
        return NextWork(-math.inf, -math.inf)

    def take(self, now: float, capacity: Capacity) -> Job | None:
        self._raise_if_faulty("take")
        raise InsufficientMemory

    def _raise_if_faulty(self, method: str) -> None:
        if method == self.faulty_method:
            raise LookupError(method)

    def queued_seconds(self, target: float) -> float:
        return 0.0

    def reject_all(self, error: Exception) -> None:
        """Nothing waits."""


@pytest.mark.parametrize("method", ["next_work", "take"])
def test_faulty_source_is_reported_and_does_not_stop_the_others(method: str) -> None:
    faults: list[BaseException] = []

    async def main() -> list[list[float]]:
        device, scheduler = FakeDevice(), Scheduler(2, on_fault=faults.append)
        scheduler.attach(FaultySource(method))
        model = FakeModel(device, scheduler, max_size=1)
        return await asyncio.gather(*(model.predict(float(i)) for i in range(5)))

    assert run_virtually(main()) == [expected(float(i)) for i in range(5)]
    assert {str(fault) for fault in faults} == {method}


def test_job_that_raises_is_reported_and_frees_its_slot() -> None:
    faults: list[BaseException] = []

    async def main() -> list[float]:
        scheduler = Scheduler(on_fault=faults.append)
        model = FakeModel(FakeDevice(), scheduler)

        def raise_error() -> None:
            raise LookupError("on_start")

        with pytest.raises(RuntimeError):
            await model.batcher.submit({"x": np.ones((1, 1))}, on_start=raise_error)
        return await model.predict(1.0)

    assert run_virtually(main()) == expected(1.0)
    assert [str(fault) for fault in faults] == ["on_start"]
