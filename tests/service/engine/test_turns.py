"""Quick requests of one turn of the event loop: they share a run, and no fate."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.backends.base import BackendError, OutOfMemory
from service.backends.fake import FakeBackend, Fault, failing, out_of_memory
from service.engine.batcher import BatchPolicy, BatchResult
from service.engine.latency import LatencyProfile, StepCost, shape_of
from service.engine.pipeline import Pipeline
from service.engine.preparation import PreparationRules
from service.engine.request import PredictRequest, PredictResult, RequestState, render_json
from service.engine.scheduler import Deadline
from service.engine.turns import Turns, TurnSteps
from service.errors import ServiceError
from tasks.contract import Answer, Arrays, Limits, Run, count_samples
from tests.model_folders import runner
from tests.tiny.tabular import CREDIT, credit_graph
from tests.virtual_clock import now, run_virtually
from tests.virtual_pipeline import VirtualDevice

QUICK_S = 1e-5


@dataclass
class QuickModel:
    """A pipeline all of whose steps have been measured to be cheap, and the sizes of its runs."""

    faults: Sequence[Fault] = ()
    max_size: int = 64
    device: VirtualDevice = field(default_factory=lambda: VirtualDevice(hop_s=1e9))
    run_sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.backend = FakeBackend(runner(credit_graph()), faults=[self._count, *self.faults])
        context = self.device.context
        self.pipeline = Pipeline(CREDIT, self.backend, context, name="credit", policy=BatchPolicy(self.max_size))
        samples = CREDIT.preprocess(CREDIT.decode(CREDIT.parse(CREDIT.example(), Limits()), Limits()))
        for size in (1, self.max_size):
            self.pipeline.latency_profile.record(shape_of(samples.arrays), size, QUICK_S)
        request = CREDIT.parse(CREDIT.example(), Limits())
        self.pipeline.postprocess_cost(request).record(QUICK_S, 1)
        self.pipeline.preparation_cost(make_request([{}])).record(QUICK_S, 100)

    def _count(self, arrays: Arrays, run: Run) -> Arrays:
        self.run_sizes.append(count_samples(arrays))
        return run(arrays)

    async def ask(self, request: PredictRequest, limit: float = 1e6) -> Any:
        """Return the answer of a request, or its error."""
        assert self.pipeline.is_quick(request)
        state = RequestState(arrived_at=now())
        try:
            outcome = await self.pipeline.answer_in_turn(request, Deadline(limit, limit), state)
            if not isinstance(outcome, PredictResult):
                outcome = await self.pipeline.predict(request, Deadline(limit, limit), state, outcome)
        except ServiceError as error:
            return error.code
        return json.loads(outcome.body)["predictions"]


def make_request(rows: Sequence[Mapping[str, Any]]) -> PredictRequest:
    body = json.dumps({"rows": rows}).encode()
    return PredictRequest("json", body, json.loads)


def expected(rows: Sequence[Mapping[str, Any]]) -> Any:
    answer = CREDIT.answer(runner(credit_graph()), {"rows": rows})
    return json.loads(render_json(answer))["predictions"]


ROWS = st.fixed_dictionaries(
    {
        "income": st.one_of(st.none(), st.floats(-200, 200, width=16)),
        "debt": st.floats(0, 50, width=16),
        "job": st.sampled_from(["baker", "clerk", "pilot", " clerk ", "?", None]),
    }
)
BAD_ROW = {"income": "much", "debt": 1, "job": "baker"}


@settings(max_examples=50, deadline=None)
@given(
    requests=st.lists(st.lists(ROWS, min_size=1, max_size=5) | st.just([BAD_ROW]), min_size=1, max_size=12),
    max_size=st.integers(1, 16),
)
def test_each_request_of_a_turn_gets_its_own_answer_or_its_own_error(
    requests: list[list[dict[str, Any]]], max_size: int
) -> None:
    model = QuickModel(max_size=max_size)

    async def main() -> list[Any]:
        return list(await asyncio.gather(*(model.ask(make_request(rows)) for rows in requests)))

    answers = run_virtually(main())

    assert answers == ["invalid_request" if rows == [BAD_ROW] else expected(rows) for rows in requests]
    assert all(size <= max_size for size in model.run_sizes)
    assert model.pipeline.in_flight == 0


def test_requests_that_arrive_together_share_one_run_on_the_event_loop() -> None:
    model = QuickModel()

    async def main() -> None:
        await asyncio.gather(*(model.ask(make_request([{"income": i, "debt": 1, "job": "baker"}])) for i in range(20)))

    run_virtually(main())

    assert model.run_sizes == [20]
    assert model.device.threads.submitted == model.device.interpreter.submitted == 0


def test_request_whose_client_has_gone_is_dropped_and_the_others_are_answered() -> None:
    model = QuickModel()

    async def main() -> Any:
        tasks = [asyncio.create_task(model.ask(make_request([CREDIT.example()["rows"][0]]))) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, gone, last = run_virtually(main())

    assert isinstance(gone, asyncio.CancelledError)
    assert first == last == expected(CREDIT.example()["rows"])
    assert model.run_sizes == [2]


def test_request_without_time_left_is_refused_before_any_work_is_done_for_it() -> None:
    model = QuickModel()

    async def main() -> list[Any]:
        await asyncio.sleep(10)
        request = make_request(CREDIT.example()["rows"])
        return [await model.ask(request, limit=9.0), await model.ask(request, limit=11.0)]

    assert run_virtually(main()) == ["overloaded", expected(CREDIT.example()["rows"])]
    assert model.run_sizes == [1]


def test_the_number_of_quick_requests_is_limited_by_their_deadlines_alone() -> None:
    model = QuickModel()
    count = 2 * model.pipeline.max_in_flight

    async def main() -> list[Any]:
        request = make_request(CREDIT.example()["rows"])
        return list(await asyncio.gather(*(model.ask(request) for _ in range(count))))

    assert run_virtually(main()) == [expected(CREDIT.example()["rows"])] * count
    assert model.pipeline.in_flight == 0


def test_after_a_turn_in_which_the_process_was_stopped_a_request_that_finds_nobody_waiting_is_tried() -> None:
    times = iter([0.0, 0.0, 0.0, 1e3])
    profile = LatencyProfile()
    steps = TurnSteps(
        CREDIT,
        PreparationRules(Limits(), ()),
        profile,
        hop_s=0.0,
        batch_limit=lambda: 1,
        run=lambda parts, size, spans: BatchResult({}, (), 0),
        prepare_cost=lambda request: StepCost(),
        postprocess_cost=lambda request: StepCost(),
        on_dropped=lambda count: None,
    )
    turns = Turns(steps, clock=lambda: next(times, 1e3))

    async def main() -> None:
        await turns.submit(make_request(CREDIT.example()["rows"]), 1e6, RequestState())

    run_virtually(main())

    assert turns.wait_s == 0


@pytest.mark.parametrize(
    "fault", [failing(lambda: BackendError("The graph failed."), lambda a: 13.0 in a["numbers"])], ids=["poison"]
)
def test_only_the_request_that_makes_the_graph_fail_gets_an_error(fault: Fault) -> None:
    model = QuickModel([fault])

    async def main() -> list[Any]:
        rows = [{"income": income, "debt": 1.0, "job": "baker"} for income in (1.0, 13.0, 2.0, 3.0)]
        return list(await asyncio.gather(*(model.ask(make_request([row])) for row in rows)))

    first, poison, *others = run_virtually(main())

    assert poison == "backend_failed"
    assert all(isinstance(answer, list) for answer in (first, *others))


def test_batch_that_does_not_fit_into_memory_is_answered_in_smaller_ones() -> None:
    model = QuickModel([out_of_memory(lambda arrays: count_samples(arrays) > 2)])

    async def main() -> list[Any]:
        rows = CREDIT.example()["rows"]
        return list(await asyncio.gather(*(model.ask(make_request(rows)) for _ in range(9))))

    assert run_virtually(main()) == [expected(CREDIT.example()["rows"])] * 9


def test_model_whose_graph_is_not_cheap_gets_the_samples_and_goes_on_in_batches() -> None:
    model = QuickModel(device=VirtualDevice(hop_s=1.0))
    samples = CREDIT.preprocess(CREDIT.decode(CREDIT.parse(CREDIT.example(), Limits()), Limits()))

    async def main() -> list[Any]:
        rows = CREDIT.example()["rows"]
        waiting = [asyncio.create_task(model.ask(make_request(rows))) for _ in range(4)]
        await asyncio.sleep(0)
        for _ in range(200):  # Meanwhile it has become slow.
            model.pipeline.latency_profile.record(shape_of(samples.arrays), 1, 100.0)
        return list(await asyncio.gather(*waiting))

    assert run_virtually(main()) == [expected(CREDIT.example()["rows"])] * 4
    assert model.device.threads.submitted > 0


def test_an_answer_that_cannot_be_rendered_is_an_error_of_its_request_alone() -> None:
    model = QuickModel()
    request = make_request(CREDIT.example()["rows"])

    def fail(answer: Answer) -> bytes:
        raise OSError(f"no room for {type(answer).__name__}")

    broken = PredictRequest("json", request.body, json.loads, render=fail)

    async def main() -> list[Any]:
        return list(await asyncio.gather(model.ask(request), model.ask(broken), return_exceptions=True))

    good, bad = run_virtually(main())

    assert good == expected(CREDIT.example()["rows"])
    assert isinstance(bad, OSError)


def test_out_of_memory_for_a_single_request_is_told_to_its_client() -> None:
    model = QuickModel([failing(lambda: OutOfMemory("full"))])

    async def main() -> Any:
        return await model.ask(make_request(CREDIT.example()["rows"]))

    assert run_virtually(main()) == "out_of_memory"
