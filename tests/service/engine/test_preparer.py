"""Where requests are prepared: the two lanes of worker processes, the interpreter's thread, and the event loop."""

from typing import Any

import pytest

from service.engine.latency import StepCost
from service.engine.preparation import BudgetExceeded, Preparation
from service.engine.preparer import Preparer
from service.engine.request import PredictRequest, RequestState
from service.engine.scheduler import Deadline
from service.errors import ServiceError, Unreadable
from tests.tiny.models import tiny
from tests.virtual_clock import run_virtually
from tests.virtual_pipeline import TaskInThread, VirtualDevice


class Requests:
    """A preparer of a task, where its steps ran, and which attempts exceed their budget."""

    def __init__(self, task: str, *, exceeding: tuple[int, ...] = ()) -> None:
        self.device = VirtualDevice()
        self.task = tiny(task)[0]
        self.ran_in: list[str] = []
        self.cost = StepCost()
        self.state = RequestState()
        self.exceeding = exceeding
        isolated = None if self.task.upload is None else IsolatedRequests(self)
        self.preparer = Preparer(
            self.task, isolated, self.device.context, self.run, lambda *key: self.cost, lambda size: None
        )

    async def run(
        self, queue: Any, threads: Any, work: Any, deadline: Deadline, predicted_s: float, memory_bytes: int
    ) -> Any:
        names = {self.device.interpreter: "interpreter", self.device.decoders: "first"}
        self.ran_in.append(names.get(threads, "second"))
        return work()

    def request(self, body: bytes = b"-", *, is_compressed: bool = False) -> PredictRequest:
        fields = self.task.example()
        return PredictRequest("json", body, lambda content: fields, is_compressed=is_compressed)

    async def prepare(self, body: bytes = b"-", *, is_compressed: bool = False) -> Any:
        return await self.preparer.prepare(self.request(body, is_compressed=is_compressed), Deadline(), self.state)


class IsolatedRequests(TaskInThread):
    def __init__(self, requests: Requests) -> None:
        super().__init__(requests.task)
        self.__dict__["exceeding"] = requests.exceeding

    def prepare(self, rules: Any, request: PredictRequest, attempt: int) -> Any:
        if attempt in self.__dict__["exceeding"]:
            raise BudgetExceeded(Unreadable("It takes too long."))
        return super().prepare(rules, request, attempt)


def test_ordinary_image_is_prepared_in_the_first_lane() -> None:
    requests = Requests("classification")

    assert isinstance(run_virtually(requests.prepare()), Preparation)
    assert requests.ran_in == ["first"]
    assert not requests.state.is_unusual
    assert requests.state.prepare_wait_s > 0


def test_image_that_exceeds_the_first_budget_is_prepared_in_the_second_lane() -> None:
    requests = Requests("classification", exceeding=(0,))

    assert isinstance(run_virtually(requests.prepare()), Preparation)
    assert requests.ran_in == ["first", "second"]
    assert requests.state.is_unusual  # Its duration must not make the server refuse ordinary requests.


def test_large_file_is_not_predicted_to_take_longer_than_the_first_lane_lets_it() -> None:
    requests = Requests("classification")
    requests.cost.record(0.1, 10_000)

    small_s, large_s = (requests.preparer.predict_s(requests.request(bytes(size))) for size in (10_000, 10_000_000))

    assert small_s == pytest.approx(0.1)
    assert large_s == pytest.approx(0.3)


def test_image_that_exceeds_both_budgets_is_refused_with_the_reason() -> None:
    requests = Requests("classification", exceeding=(0, 1))

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


def test_a_step_that_costs_less_than_a_hop_belongs_on_the_event_loop() -> None:
    requests = Requests("sentiment")
    before = requests.preparer.runs_inline(requests.request())
    requests.cost.record(1e-6, 1)

    assert not before
    assert requests.preparer.runs_inline(requests.request())


def test_a_large_body_never_runs_on_the_event_loop_however_cheap_bodies_seem_to_be() -> None:
    requests = Requests("recommendations")
    requests.cost.record(1e-6, 1_000_000)

    run_virtually(requests.prepare(b"-" * 50_000))

    assert not requests.preparer.runs_inline(requests.request(b"-" * 50_000))
    assert requests.ran_in == ["interpreter"]
