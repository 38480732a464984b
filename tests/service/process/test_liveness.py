"""Failures are reported by /health/live and /health/ready until they are resolved; fatal ones stay."""

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.process.liveness import Liveness
from tests.service.conftest import Running, Start
from tests.tiny.classification import COLOURS
from tests.waiting import wait_until


def kill(thread: threading.Thread) -> None:
    """Raise SystemExit in an idle thread as soon as it runs Python code again, outside of any work item."""
    assert thread.ident is not None
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)) == 1


def test_healthy_process_is_live_and_ready(server: Running) -> None:
    live, ready = server.client.get("/health/live"), server.client.get("/health/ready")

    assert (live.status_code, live.json()) == (200, {"live": True, "failures": {}})
    assert (ready.status_code, ready.json()["ready"]) == (200, True)


def test_failure_is_reported_with_its_reason_until_it_is_resolved(start: Start) -> None:
    server = start()

    server.service.liveness.fail("cpu", "A run has not come back.")
    live, ready = server.client.get("/health/live"), server.client.get("/health/ready")
    server.service.liveness.resolve("cpu")

    assert (live.status_code, live.json()) == (503, {"live": False, "failures": {"cpu": "A run has not come back."}})
    assert (ready.status_code, ready.json()["reason"]) == (503, "cpu: A run has not come back.")
    assert server.client.get("/health/live").status_code == 200
    assert server.client.get("/health/ready").status_code == 200


@pytest.mark.parametrize("pool", ["decoder", "cpu"])
def test_liveness_fails_if_an_idle_thread_dies(start: Start, pool: str) -> None:
    threads_before = set(threading.enumerate())
    server = start(decoders=1, batches_at_once=1, max_delay_ms=1.0)  # With a delay, all batches run in threads.
    clients = ThreadPoolExecutor(2)

    def predict_twice() -> list[httpx.Response]:
        """Send two requests at a time, which use both pools; a single one would use the device's only."""
        url, image, headers = "/v1/models/colours/predict", COLOURS.example(), {"X-Request-Timeout-Ms": "500"}
        requests = [clients.submit(server.client.post, url, json=image, headers=headers) for _ in range(2)]
        return [request.result() for request in requests]

    def threads_of_pool() -> list[threading.Thread]:
        return [thread for thread in set(threading.enumerate()) - threads_before if thread.name.startswith(pool)]

    wait_until(lambda: [answer.status_code for answer in predict_twice()] == [200, 200] and threads_of_pool() != [])
    (thread,) = threads_of_pool()
    kill(thread)
    answers = predict_twice()  # One of them wakes the thread, which dies before it takes the work item.
    wait_until(lambda: server.client.get("/health/live").status_code == 503)

    failures = server.client.get("/health/live").json()["failures"]
    assert failures[f"thread {thread.name}"] == f"A thread of the pool '{pool}' has died and will not be replaced."
    assert server.client.get("/health/ready").status_code == 503
    assert 504 in [answer.status_code for answer in answers]
    clients.shutdown()


def test_fatal_failure_stays_and_is_reported_once() -> None:
    liveness, reported = Liveness(), list[str]()
    liveness.on_fatal(reported.append)

    liveness.mark_fatal("The device is gone.")
    liveness.mark_fatal("The device is gone, still.")
    liveness.resolve("process")
    liveness.fail("process", "Something else.")

    assert reported == ["The device is gone."]
    assert liveness.is_fatal
    assert liveness.fatal_reason == "The device is gone."
    assert liveness.failures == {"process": "The device is gone."}


def test_callback_set_after_a_fatal_failure_is_called_at_once() -> None:
    liveness, reported = Liveness(), list[str]()
    liveness.mark_fatal("The device is gone.")

    liveness.on_fatal(reported.append)

    assert reported == ["The device is gone."]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.sampled_from("xyz")))))
def test_failures_are_the_last_reported_ones_that_were_not_resolved(events: list[tuple[str, str | None]]) -> None:
    liveness, expected = Liveness(), dict[str, str]()
    for component, reason in events:
        if reason is None:
            liveness.resolve(component)
            expected.pop(component, None)
        else:
            liveness.fail(component, reason)
            expected[component] = reason

    assert liveness.failures == expected


def test_many_threads_may_report_at_a_time() -> None:
    liveness, all_started = Liveness(), threading.Barrier(8)

    def report(number: int) -> None:
        all_started.wait()
        for _ in range(50):
            liveness.fail(f"part {number}", "It fails.")
            liveness.check_threads()
            liveness.resolve(f"part {number}")

    with ThreadPoolExecutor(8, initializer=liveness.thread_initializer("reporters")) as pool:
        list(pool.map(report, range(8)))
        assert liveness.failures == {}
        assert len(liveness.live_threads()) == 8

    liveness.check_threads()
    assert len(liveness.failures) == 8
    assert liveness.live_threads() == []
