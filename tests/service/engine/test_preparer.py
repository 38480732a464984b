"""Where requests are prepared: the two lanes of worker processes, the interpreter's thread, and the event loop."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from service.engine.context import Decoders, Prepare
from service.engine.latency import StepCost
from service.engine.preparation import BudgetExceeded, Preparation
from service.engine.preparer import Preparer
from service.engine.request import PredictRequest
from service.engine.scheduler import Deadline
from service.errors import ServiceError, Unreadable
from tasks.contract import Task
from tests.tiny.models import tiny
from tests.virtual_clock import run_virtually
from tests.virtual_pipeline import VirtualDevice, prepare_in_thread


def exceeds_budget(task: Task) -> Prepare:
    def fail(*_: Any) -> Any:
        raise BudgetExceeded(Unreadable("It takes too long."))

    return fail


class Requests:
    """A preparer of a task, and how often its steps ran where."""

    def __init__(self, task: str, first: Any = prepare_in_thread, second: Any = prepare_in_thread) -> None:
        self.device = VirtualDevice()
        self.task = tiny(task)[0]
        self.ran_in: list[str] = []
        context = self.device.context
        decoders, slow_decoders = (
            Decoders(lane.pool, partial(self.recorded, name, register))
            for name, lane, register in (("first", context.decoders, first), ("second", context.slow_decoders, second))
        )
        context = replace(context, decoders=decoders, slow_decoders=slow_decoders)
        self.cost = StepCost()
        self.preparer = Preparer(self.task, context, self.run, lambda *key: self.cost, lambda size: None)

    def recorded(self, lane: str, register: Any, task: Task) -> Prepare:
        prepare = register(task)

        def record(rules: Any, request: PredictRequest) -> Any:
            self.ran_in.append(lane)
            return prepare(rules, request)

        return record

    async def run(self, queue: Any, threads: Any, work: Any, deadline: Deadline, predicted_s: float) -> Any:
        if threads is self.device.interpreter:
            self.ran_in.append("interpreter")
        return work()

    async def prepare(self, body: bytes = b"-", *, is_compressed: bool = False) -> Any:
        fields = self.task.example()
        request = PredictRequest("json", body, lambda content: fields, is_compressed=is_compressed)
        return await self.preparer.prepare(request, Deadline())


def test_ordinary_image_is_prepared_in_the_first_lane() -> None:
    requests = Requests("classification")

    assert isinstance(run_virtually(requests.prepare()), Preparation)
    assert requests.ran_in == ["first"]


def test_image_that_exceeds_the_first_budget_is_prepared_in_the_second_lane() -> None:
    requests = Requests("classification", first=exceeds_budget)

    assert isinstance(run_virtually(requests.prepare()), Preparation)
    assert requests.ran_in == ["first", "second"]


def test_image_that_exceeds_both_budgets_is_refused_with_the_reason() -> None:
    requests = Requests("classification", exceeds_budget, exceeds_budget)

    with pytest.raises(ServiceError, match="It takes too long"):
        run_virtually(requests.prepare())
    assert requests.preparer.preparing == 0


@pytest.mark.parametrize(
    ("body", "is_compressed", "place"),
    [(b"x" * 500, False, "interpreter"), (b"x" * 50_000, False, "first"), (b"x", True, "first")],
    ids=["small", "large", "compressed"],
)
def test_a_text_is_prepared_in_a_process_if_its_body_is_large_or_compressed(
    body: bytes, is_compressed: bool, place: str
) -> None:
    requests = Requests("sentiment")

    run_virtually(requests.prepare(body, is_compressed=is_compressed))

    assert requests.ran_in == [place]


def test_a_step_that_costs_less_than_a_hop_runs_on_the_event_loop() -> None:
    requests = Requests("sentiment")
    requests.cost.record(1e-6, 1)

    run_virtually(requests.prepare())

    assert requests.ran_in == []
