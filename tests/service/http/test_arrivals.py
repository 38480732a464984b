"""When requests arrived, on a loop and a clock that the test moves."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from service.http.arrivals import Arrival, Arrivals, arrival_of, put_arrival


class Loop:
    """An event loop whose turns the test ends."""

    def __init__(self) -> None:
        self.now = 100.0
        self._ready: list[Callable[[], None]] = []
        self.arrivals = Arrivals(lambda: self.now)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._ready.append(callback)

    def read(self) -> Arrival:
        return self.arrivals.on_read(cast(asyncio.AbstractEventLoop, self))

    def answer(self, seconds: float) -> None:
        """Run what is ready, which ends the reading, and then a task that responds."""
        ready, self._ready = self._ready, []
        for callback in ready:
            callback()
        self.now += seconds
        self.arrivals.on_response()


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_a_request_to_an_idle_server_arrives_when_it_is_read(loop: Loop) -> None:
    loop.read()
    loop.answer(0.2)
    loop.now += 1.0

    arrival = loop.read()

    assert arrival == Arrival(loop.now, loop.now)


def test_what_is_read_after_a_long_turn_may_have_waited_for_all_of_it(loop: Loop) -> None:
    began_at = loop.now
    loop.read()
    loop.answer(0.3)

    arrival = loop.read()

    assert arrival == Arrival(earliest=began_at, read_at=began_at + 0.3)


def test_all_connections_that_are_read_in_a_turn_share_the_earliest_time(loop: Loop) -> None:
    began_at = loop.now
    loop.read()
    loop.answer(0.3)

    first = loop.read()
    loop.now += 0.01
    second = loop.read()

    assert (first.earliest, second.earliest) == (began_at, began_at)
    assert second.read_at == first.read_at + 0.01


def test_a_turn_later_only_the_last_turn_counts(loop: Loop) -> None:
    loop.read()
    loop.answer(0.3)
    second_at = loop.read().read_at
    loop.answer(0.1)

    assert loop.read().earliest == second_at


def test_the_arrival_is_found_in_the_scope_of_the_request() -> None:
    scope: dict[str, object] = {}

    put_arrival(scope, Arrival(1.0, 2.0))

    assert arrival_of(scope) == Arrival(1.0, 2.0)


def test_a_request_of_another_server_arrives_now() -> None:
    arrival = arrival_of({})

    assert arrival.earliest == arrival.read_at
