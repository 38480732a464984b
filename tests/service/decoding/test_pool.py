"""Worker processes: what they return, and what becomes of requests that exceed their budget or end their process."""

import json
import os
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.decoding.body_formats import parse_json
from service.decoding.fork_server import PROGRAM, ForkServer
from service.decoding.pool import Budget, DecoderPool, IsolatedTask
from service.engine.memory_budget import MemoryBudget, MemoryPlan
from service.engine.preparation import BudgetExceeded, Preparation, PreparationRules, SeveralPreparations
from service.engine.request import PredictRequest, render_json
from service.errors import InternalError, InvalidRequest, NoMemory, ServiceError, Stopped, TooLarge, Unreadable
from tasks.contract import Limits
from tests.service.decoding.hostile_task import Hostile
from tests.waiting import wait_until

RULES = PreparationRules(Limits(inputs=3), ("timeout_ms", "priority"))


class Decoders:
    """A pool with a registered task."""

    def __init__(
        self,
        size: int = 1,
        budget_s: float = 0.3,
        fork_server: ForkServer | None = None,
        memory: MemoryBudget | None = None,
    ) -> None:
        self.killed: list[str] = []
        self.fork_server = fork_server or ForkServer()
        budgets = (Budget(budget_s, 0.2e-6), Budget(10 * budget_s))
        self.pool = DecoderPool(
            self.fork_server, size, size, budgets, on_killed=self.killed.append, memory=memory or MemoryBudget()
        )
        self.task: IsolatedTask = self.pool.register(Hostile())

    def prepare(self, body: bytes, attempt: int = 0) -> Preparation | SeveralPreparations:
        parse = partial(parse_json, query={}, max_values=1_000)
        return self.task.prepare(RULES, PredictRequest("json", body, parse), attempt)

    def order(self, order: str) -> Preparation:
        prepared = self.prepare(b'{"order": "' + order.encode() + b'"}')
        assert isinstance(prepared, Preparation)
        return prepared

    def close(self) -> None:
        self.pool.close()
        self.fork_server.close()

    def process_of(self, prepared: Preparation) -> int:
        process: int = prepared.samples.context[1]
        return process


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    decoders = Decoders()
    yield decoders
    decoders.close()


def test_request_is_prepared_in_another_process(decoders: Decoders) -> None:
    prepared = decoders.order("wait")

    assert decoders.process_of(prepared) != os.getpid()
    assert prepared.samples.arrays["value"].tolist() == [[4.0]]
    assert np.asarray(prepared.samples.context[0]).tolist() == [[[1, 2, 3]] * 3] * 2
    assert (prepared.request.top, prepared.request.order) == (1, None)  # type: ignore[attr-defined]


def test_options_among_the_fields_are_returned(decoders: Decoders) -> None:
    prepared = decoders.prepare(b'{"order": "wait", "timeout_ms": 500}')

    assert prepared.options.timeout_s == 0.5


def test_a_process_is_used_again(decoders: Decoders) -> None:
    assert decoders.process_of(decoders.order("wait")) == decoders.process_of(decoders.order("wait"))


@pytest.mark.parametrize(
    ("order", "error", "reason"),
    [("spin", BudgetExceeded, "retried"), ("crash", Unreadable, "crashed"), ("be killed", NoMemory, "killed")],
)
def test_request_that_ends_its_process_gets_an_error_and_the_next_one_is_answered(
    decoders: Decoders, order: str, error: type[Exception], reason: str
) -> None:
    before = decoders.process_of(decoders.order("wait"))

    with pytest.raises(error):
        decoders.order(order)

    assert decoders.process_of(decoders.order("wait")) != before
    assert decoders.killed == [reason]


def test_a_larger_body_has_a_larger_budget(decoders: Decoders) -> None:
    with pytest.raises(BudgetExceeded, match=r"more than 0\.5 s of processor time"):
        decoders.prepare(b'{"order": "spin"}' + b" " * 1_000_000)


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        ("refuse", Unreadable, "This order is refused."),
        ("allocate", TooLarge, "more memory than the 1,500 MB that one request may use"),
        ("divide", InternalError, "The server's log has the details"),
    ],
)
def test_errors_of_a_request_do_not_end_the_process(
    decoders: Decoders, order: str, error: type[ServiceError], message: str
) -> None:
    before = decoders.process_of(decoders.order("wait"))

    with pytest.raises(error, match=message):
        decoders.order(order)

    assert decoders.process_of(decoders.order("wait")) == before
    assert decoders.killed == []


def test_second_attempt_has_the_second_budget(decoders: Decoders) -> None:
    with pytest.raises(BudgetExceeded, match=r"more than 3\.0 s of processor time"):
        decoders.prepare(b'{"order": "spin"}', attempt=1)

    assert decoders.killed == ["budget"]


def test_answer_is_made_in_another_process(decoders: Decoders) -> None:
    prepared = decoders.order("wait")

    body = decoders.task.postprocess(
        {"value": np.array([[5.0]], np.float32)}, prepared.samples, prepared.request, render_json
    )

    assert json.loads(body) == {"model": "", "version": "", "value": 5.0}


def test_problems_of_an_invalid_request_are_returned(decoders: Decoders) -> None:
    with pytest.raises(InvalidRequest) as raised:
        decoders.prepare(b'{"order": 5}')

    assert [problem.where for problem in raised.value.details] == ["order"]


def test_each_input_of_a_list_has_its_own_result(decoders: Decoders) -> None:
    several = decoders.prepare(b'{"order": ["wait", "refuse", 7]}')

    assert isinstance(several, SeveralPreparations)
    assert [type(item) for item in several.items] == [Preparation, Unreadable, InvalidRequest]


@pytest.mark.parametrize(("orders", "error"), [(b"[]", InvalidRequest), (b'["a", "b", "c", "d"]', TooLarge)])
def test_an_empty_or_too_long_list_is_refused(decoders: Decoders, orders: bytes, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        decoders.prepare(b'{"order": ' + orders + b"}")


def test_a_process_that_has_forgotten_a_task_builds_it_again(decoders: Decoders) -> None:
    before = decoders.process_of(decoders.order("wait"))
    for _ in range(100):
        decoders.pool.register(Hostile())

    assert decoders.process_of(decoders.order("wait")) == before


def test_requests_run_in_as_many_processes_as_the_pool_has() -> None:
    decoders = Decoders(size=2, budget_s=0.5)
    with ThreadPoolExecutor(2) as threads:
        spinning = threads.submit(decoders.order, "spin")
        others = [decoders.order("wait") for _ in range(3)]
        error: Any = spinning.exception()
    decoders.close()

    assert len({decoders.process_of(prepared) for prepared in others}) >= 1
    assert isinstance(error, BudgetExceeded)


def test_the_fork_server_is_started_again_if_it_has_died(decoders: Decoders) -> None:
    first = decoders.order("wait")
    os.kill(parent_of(decoders.process_of(first)), signal.SIGKILL)
    wait_until(lambda: decoders.process_of(decoders.order("wait")) != decoders.process_of(first))

    wait_until(lambda: not is_alive(decoders.process_of(first)))


def test_processes_ignore_signals_that_are_meant_for_the_server(decoders: Decoders) -> None:
    process = decoders.process_of(decoders.order("wait"))
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(process, number)
        os.kill(parent_of(process), number)

    assert decoders.process_of(decoders.order("wait")) == process


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_processes_are_reached_while_thousands_of_connections_are_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2_048, hard), hard))
    clients = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    decoders = Decoders()
    try:
        first = decoders.order("wait")
        second = decoders.order("wait")
    finally:
        decoders.close()
        for client in clients:
            os.close(client)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert decoders.process_of(first) == decoders.process_of(second)


THIRD_FORK_FAILS = """
import errno, os
from itertools import count
fork, number = os.fork, count(1)
def fork_unless_third():
    if next(number) == 3:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    return fork()
os.fork = fork_unless_third
"""


def test_a_limit_on_processes_fails_one_request_and_leaves_the_other_processes() -> None:
    decoders = Decoders(size=2, fork_server=ForkServer(THIRD_FORK_FAILS + PROGRAM))
    parent = parent_of(decoders.process_of(decoders.order("wait")))
    with pytest.raises(NoMemory, match="ran out of memory"):
        decoders.order("be killed")
    with pytest.raises(NoMemory, match="cannot start a process: Resource temporarily unavailable"):
        decoders.order("wait")

    assert parent_of(decoders.process_of(decoders.order("wait"))) == parent
    decoders.close()


def test_a_task_is_registered_even_if_no_process_can_be_started() -> None:
    decoders = Decoders(fork_server=ForkServer("raise SystemExit(1)"))

    with pytest.raises(NoMemory, match="cannot start a process"):
        decoders.order("wait")
    decoders.close()


def test_bodies_of_refused_requests_do_not_pile_up_in_a_process(decoders: Decoders) -> None:
    process = decoders.process_of(decoders.order("wait"))
    body = b'{"order": "refuse", "padding": "' + b"x" * 8_000_000 + b'"}'

    for _ in range(12):
        with pytest.raises(ServiceError):
            decoders.prepare(body, attempt=1)

    assert decoders.process_of(decoders.order("wait")) == process
    assert resident_bytes(process) < 200_000_000


@pytest.fixture
def tight_decoders() -> Iterator[Decoders]:
    """A pool whose first attempt gets 75 MB, and whose second one 300 MB."""
    decoders = Decoders(budget_s=10.0, memory=MemoryBudget(MemoryPlan(1e8, 3e8), decoders=2))
    yield decoders
    decoders.close()


def test_where_memory_is_tight_a_request_that_needs_more_is_prepared_again_with_more(tight_decoders: Decoders) -> None:
    with pytest.raises(BudgetExceeded, match="more memory than the 75 MB"):
        tight_decoders.order("allocate 200 MB")

    assert isinstance(tight_decoders.prepare(b'{"order": "allocate 200 MB"}', attempt=1), Preparation)


def test_a_request_that_needs_more_than_there_is_gets_the_number(tight_decoders: Decoders) -> None:
    with pytest.raises(TooLarge, match="more memory than the 300 MB that one request may use on this server"):
        tight_decoders.prepare(b'{"order": "allocate"}', attempt=1)


def test_a_library_that_aborts_without_memory_does_not_make_the_input_unreadable(tight_decoders: Decoders) -> None:
    with pytest.raises(BudgetExceeded, match="more memory"):
        tight_decoders.order("abort")

    assert isinstance(tight_decoders.order("wait"), Preparation)


def test_the_limit_of_one_request_does_not_outlive_it(tight_decoders: Decoders) -> None:
    tight_decoders.order("wait")

    prepared = tight_decoders.prepare(b'{"order": "allocate 200 MB"}', attempt=1)

    assert isinstance(prepared, Preparation)
    assert prepared.held_bytes > 0


def test_an_idle_process_gives_its_memory_back(decoders: Decoders) -> None:
    process = decoders.process_of(decoders.order("wait"))
    before = resident_bytes(process)

    decoders.order("use 40 MB in small pieces")

    wait_until(lambda: resident_bytes(process) < before + 10_000_000)


def resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_closing_the_pool_ends_requests_and_processes() -> None:
    decoders = Decoders(budget_s=60.0)
    process = decoders.process_of(decoders.order("wait"))
    with ThreadPoolExecutor(1) as threads:
        spinning = threads.submit(decoders.order, "spin")
        wait_until(spinning.running)
        decoders.pool.close()
        error = spinning.exception()
    decoders.fork_server.close()

    assert isinstance(error, Stopped)
    wait_until(lambda: not is_alive(process))
    with pytest.raises(Stopped):
        decoders.order("wait")


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
