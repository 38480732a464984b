"""Requests when the device or a thread fails: out of memory, a call that hangs, a sticky error, a thread that dies."""

import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from loadtests.clients import (
    NO_RESPONSE,
    ClientPool,
    Reply,
    ScheduledRequest,
    open_loop,
    run_clients,
    send_sequentially,
)
from tests.faults.cancelled_clients import FLAGS
from tests.faults.report import Row, first_of, ms
from tests.faults.sample_requests import with_expected
from tests.faults.scenario import PATIENCE_S, ScenarioContext, busy_device, poll
from tests.faults.server_process import ServerProcess
from tests.waiting import wait_until

_DETECTION_S = 1.0
_EXIT_LOST = 70


def measure_out_of_memory(context: ScenarioContext) -> list[Row]:
    """A batch that does not fit into memory is split, and only a request that never fits fails."""
    model, count = context.known["clothing"], 14
    with context.server("clothing", flags=FLAGS, faulty=True) as server:
        valid = with_expected(server.port, [model.valid_request(seed) for seed in range(count)])
        fits_alone, never_fits = with_expected(server.port, [model.valid_request(seed) for seed in (100, 101)])
        marks = dict.fromkeys(fits_alone.digests, ("out_of_memory_in_batch", 0.0))
        marks |= dict.fromkeys(never_fits.digests, ("out_of_memory", 0.0))
        requests = [*valid, fits_alone, never_fits]
        scheduled = [ScheduledRequest(0.0, request.request, key) for key, request in enumerate(requests)]

        async def send(clients: ClientPool) -> list[Reply]:
            # While the device is busy they wait together, so that they share batches afterwards.
            async with busy_device(server, clients, model, marks):
                sending = asyncio.create_task(clients.open_loop(scheduled))
                await poll(lambda: server.metric("sevenfold_queue_depth", model=model.name) > len(requests))
            return await sending

        replies = run_clients(server.port, send)
    *others, last = zip(requests, replies, strict=True)
    problems = [problem for request, reply in others if (problem := request.problem(reply))]
    error = _status_and_code(last[1])
    return [
        Row(
            "out_of_memory",
            f"A batch that does not fit into memory is split: {count + 1} requests fit in smaller ones, one never fits",
            "all others are answered; the one that never fits gets 503 `out_of_memory`",
            f"{count + 1 - len(problems)} of {count + 1} answered{first_of(problems)}; that one: {error}",
            not problems and error == "503 out_of_memory",
            figures={"problems": problems, "error": error},
        )
    ]


def measure_hang(context: ScenarioContext) -> list[Row]:
    """A run that hangs: its request gets an error, and liveness fails until the run returns."""
    hang_s = context.pick(1.0, 3.0)  # In a short run, that of the shared server.
    with context.server("clothing", "adult", flags=("--hang-seconds", f"{hang_s:g}"), faulty=True) as server:
        known = context.known
        hanging = known["clothing"].valid_request(1)
        others = with_expected(
            server.port, [known[name].valid_request(seed) for name in ("adult", "clothing") for seed in (2, 3)]
        )
        server.fault(marks=dict.fromkeys(hanging.digests, ("hold", PATIENCE_S)))
        scheduled = [ScheduledRequest(0.0, hanging.request, -1)]
        scheduled += [ScheduledRequest(0.2 + 0.1 * i, others[i % 4].request, i % 4) for i in range(context.pick(20, 8))]
        replies = open_loop(server.port, scheduled)
        live, health = server.get("/health/live")
        server.fault(release=True, marks={})
        recovered_s = wait_until(lambda: server.get("/health/live")[0] == 200, timeout_s=PATIENCE_S)
        replies += send_sequentially(server.port, [request.request for request in others])
    hung = next(reply for reply in replies if reply.key == -1)
    problems = [problem for reply in replies if reply.key >= 0 and (problem := others[reply.key].problem(reply))]
    in_time = context.within(hung.seconds, hang_s + _DETECTION_S)
    return [
        Row(
            "device_hang",
            f"A run that hangs on the device is detected (hang limit: {hang_s:g} s)",
            "503 `device_hung` and liveness 503 within another second; other requests are answered; liveness recovers "
            "when the run returns",
            f"{_status_and_code(hung)} after {ms(hung.seconds)}; liveness {live}; {len(problems)} of "
            f"{len(replies) - 1} others failed{first_of(problems)}; live {ms(recovered_s)} after the run returned",
            _status_and_code(hung) == "503 device_hung" and live == 503 and not problems and in_time,
            figures={
                "seconds": hung.seconds,
                "health": health,
                "recovered_s": recovered_s,
                "problems": problems[:10],
            },
        )
    ]


def measure_lost(context: ScenarioContext) -> list[Row]:
    """An error after which nothing runs on the device: every request is answered, and the process exits."""
    known = context.known
    with context.server("clothing", "adult", faulty=True) as server:
        cause = known["clothing"].valid_request(1)
        others = [known["adult"].valid_request(2), *map(known["clothing"].valid_request, (3, 4, 5))]
        others = with_expected(server.port, others)
        server.fault(marks=dict.fromkeys(cause.digests, ("lost", 0)))
        scheduled = [ScheduledRequest(0.1, cause.request, -1)]
        scheduled += [ScheduledRequest(0.1, request.request, key) for key, request in enumerate(others)]
        started_at = time.monotonic()
        replies = open_loop(server.port, scheduled)
        status = server.process.wait(PATIENCE_S)
        seconds = time.monotonic() - started_at - 0.1
    unanswered = [f"{reply.key}: {reply.status}" for reply in replies if reply.status == NO_RESPONSE]
    error = _status_and_code(next(reply for reply in replies if reply.key == -1))
    return [
        Row(
            "device_lost",
            "After a sticky CUDA error (simulated), the process exits, so that its supervisor restarts it",
            f"503 `device_lost`; every request in flight is answered; exit code {_EXIT_LOST}",
            f"{error}; {len(unanswered)} of {len(replies)} unanswered; exit code {status} after {ms(seconds)}",
            error == "503 device_lost" and not unanswered and status == _EXIT_LOST,
            figures={"seconds": seconds, "exit": status, "unanswered": unanswered},
        )
    ]


def measure_thread_death(context: ScenarioContext) -> list[Row]:
    """A thread of a pool that dies: liveness fails."""
    return [_thread_row(context, pool) for pool in ("decoder", "cpu")]


def _thread_row(context: ScenarioContext, pool: str) -> Row:
    model = context.known["clothing"]
    with context.server("clothing", flags=("--max-batch", "8"), faulty=True) as server:
        # All at once: a request that is alone is processed by a single thread of the device.
        requests = [model.valid_request(seed, X_Request_Timeout_Ms="2000") for seed in range(12)]
        scheduled = [ScheduledRequest(0.0, request.request, key) for key, request in enumerate(requests)]
        open_loop(server.port, scheduled)
        server.fault(kill=pool)
        # The thread dies when it wakes, and takes the job with it that woke it.
        with ThreadPoolExecutor(1) as executor:
            detection = executor.submit(_seconds_until_not_live, server)
            replies = open_loop(server.port, scheduled)
            detected_s = detection.result()
        health = server.get("/health/live")[1]
    unanswered = sum(reply.status == NO_RESPONSE for reply in replies)
    statuses = ", ".join(f"{count} × {status}" for status, count in Counter(r.status for r in replies).items())
    return Row(
        "thread_death",
        f"A thread that dies is detected: pool '{pool}'",
        f"liveness 503 within {_DETECTION_S:g} s; every request is answered",
        f"{'never' if detected_s is None else ms(detected_s)} after the request that triggered it; "
        f"responses: {statuses}",
        context.within(detected_s, _DETECTION_S) and not unanswered,
        figures={"seconds": detected_s, "health": health, "statuses": [reply.status for reply in replies]},
    )


def _seconds_until_not_live(server: ServerProcess) -> float | None:
    try:
        return wait_until(lambda: server.get("/health/live")[0] == 503, timeout_s=PATIENCE_S)
    except TimeoutError:
        return None


def _status_and_code(reply: Reply) -> str:
    if reply.status < 400:
        return str(reply.status or "no response")
    error: dict[str, Any] = json.loads(reply.body)["error"]
    return f"{reply.status} {error['code']}"
