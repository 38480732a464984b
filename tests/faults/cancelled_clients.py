"""Requests whose clients disconnect, at each stage of a request, are not computed."""

import asyncio
import io
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from loadtests.clients import HUNG_UP, ClientPool, HangUp, Reply, ScheduledRequest, open_loop, run_clients
from service.backends.cores import available_cores
from tests.faults.report import Row
from tests.faults.sample_requests import ValidRequest
from tests.faults.scenario import PATIENCE_S, ScenarioContext, busy_device, poll, wait_until_idle
from tests.faults.server_process import ServerProcess

FLAGS = ("--max-batch", "8", "--hang-seconds", "120", "--timeout-ms", "120000")
"""So that requests are decoded ahead of their batch, and that runs which are held neither hang nor time out."""
_STAGES = ("receive", "decode", "queue", "infer", "finish")
_MIN_FRACTION = 0.95
_LARGE_INPUT, _LARGE_ANSWER = 4_900, 600
"""Side lengths in pixels of an image that takes long to decode, and of one whose answer takes long to encode."""
_FINISHING_S, _MAX_TRIES = 0.02, 5


def measure(context: ScenarioContext) -> list[Row]:
    """Clients that disconnect stage by stage while the device is held, and at random times under load."""
    rows = []
    for measure_part in (_measure_by_stage, _measure_under_load):
        with context.server("clothing", "restore", flags=FLAGS, faulty=True) as server:
            rows.append(measure_part(context, server))
    return rows


def _measure_by_stage(context: ScenarioContext, server: ServerProcess) -> Row:
    model, count = context.known["clothing"], context.pick(20, 5)
    requests = [model.valid_request(seed) for seed in range(3 * count)]
    parts = {"receive": requests[:count], "decode": requests[count : 2 * count], "queue": requests[2 * count :]}
    before = _cancelled_by_stage(server)
    _disconnect_in_the_body(server, parts["receive"])
    _disconnect_before_decoding(context, server, parts["decode"])
    _disconnect_in_the_queue(context, server, parts["queue"])
    digests = server.faults()["computed"]
    _disconnect_while_it_runs(context, server)
    _disconnect_while_it_is_finished(context, server)
    counted = {stage: total - before[stage] for stage, total in _cancelled_by_stage(server).items()}
    computed = {stage: sum(_is_computed(digests, request) for request in part) for stage, part in parts.items()}
    all_counted = all(counted[stage] >= _MIN_FRACTION * count for stage in parts)
    fraction = 1 - sum(computed.values()) / len(requests)
    by_stage = ", ".join(f"{stage} {number:.0f}" for stage, number in counted.items())
    return Row(
        "cancellation",
        f"Requests whose clients disconnect before the batch begins are not computed: {count} clients in each of "
        "receive, decode and queue",
        f"≥ {_MIN_FRACTION:.0%} never computed, counted by stage",
        f"{fraction:.1%}; counted: {by_stage}",
        fraction >= _MIN_FRACTION and all_counted and counted["infer"] > 0 and counted["finish"] > 0,
        figures={"computed": computed, "counted": counted, "clients_per_stage": count},
    )


def _cancelled_by_stage(server: ServerProcess) -> Mapping[str, float]:
    return {stage: server.metric("sevenfold_cancelled_total", stage=stage) for stage in _STAGES}


def _is_computed(digests: Mapping[str, Any], request: ValidRequest) -> bool:
    return any(digest in digests for digest in request.digests)


async def _send_and_hang_up(
    clients: ClientPool,
    requests: Sequence[ValidRequest],
    until: Callable[[], Awaitable[None]],
    *,
    body_fraction: float = 1.0,
) -> None:
    """Send the requests, or a fraction of each; hang up all at once when `until` returns."""
    tasks = []
    for request in requests:
        hang_up = HangUp(round(len(request.request) * body_fraction), after_s=2 * PATIENCE_S)
        tasks.append(asyncio.create_task(clients.send(ScheduledRequest(0.0, request.request, hang_up=hang_up))))
    try:
        await until()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _disconnect_in_the_body(server: ServerProcess, requests: Sequence[ValidRequest]) -> None:
    heads = sum(request.request.index(b"\r\n\r\n") + 4 for request in requests)
    sent = sum(round(len(request.request) * 0.5) for request in requests)

    async def have_arrived() -> None:
        await poll(lambda: server.metric("sevenfold_body_bytes") >= sent - heads)

    run_clients(server.port, lambda clients: _send_and_hang_up(clients, requests, have_arrived, body_fraction=0.5))
    wait_until_idle(server)


def _disconnect_before_decoding(
    context: ScenarioContext, server: ServerProcess, requests: Sequence[ValidRequest]
) -> None:
    """Behind large images: there is a decoding thread for each core, and all of them are busy with those."""
    large = context.known["clothing"].request("image/png", _large_image())
    # Each core has another image to decode when its first is done: time enough to notice that clients have gone.
    occupying = [ScheduledRequest(0.0, large)] * context.pick(12, 4 * available_cores())

    async def send(clients: ClientPool) -> list[Reply]:
        others = [asyncio.create_task(clients.send(request)) for request in occupying]
        await poll(lambda: _in_flight(server) >= len(others))
        await _send_and_hang_up(
            clients, requests, lambda: poll(lambda: _in_flight(server) >= len(others) + len(requests))
        )
        return list(await asyncio.gather(*others))

    replies = run_clients(server.port, send)
    if any(reply.status != 200 for reply in replies):
        raise RuntimeError(f"A large image got status {[reply.status for reply in replies]}.")
    wait_until_idle(server)


def _in_flight(server: ServerProcess) -> float:
    return server.metric("sevenfold_requests_in_flight", model="clothing")


def _large_image() -> bytes:
    """Return a PNG: unlike a JPEG, it cannot be decoded at a smaller size."""
    file = io.BytesIO()
    Image.new("RGB", (_LARGE_INPUT, _LARGE_INPUT), "teal").save(file, "PNG", compress_level=1)
    return file.getvalue()


def _disconnect_in_the_queue(context: ScenarioContext, server: ServerProcess, requests: Sequence[ValidRequest]) -> None:
    async def are_queued() -> None:
        await poll(lambda: server.metric("sevenfold_queue_depth", model="clothing") >= 1 + len(requests))

    async def send(clients: ClientPool) -> None:
        async with busy_device(server, clients, context.known["clothing"]):
            await _send_and_hang_up(clients, requests, are_queued)
            # All of them have left the queue before the device is released.
            await poll(lambda: server.metric("sevenfold_queue_depth", model="clothing") <= 1)

    run_clients(server.port, send)
    wait_until_idle(server)


def _disconnect_while_it_runs(context: ScenarioContext, server: ServerProcess) -> None:
    request = context.known["clothing"].valid_request(9_000)
    before = server.metric("sevenfold_cancelled_total", stage="infer")
    server.fault(marks=dict.fromkeys(request.digests, ("hold", PATIENCE_S)))

    async def send(clients: ClientPool) -> None:
        await _send_and_hang_up(clients, [request], lambda: poll(lambda: bool(server.faults()["held"])))
        await poll(lambda: server.metric("sevenfold_cancelled_total", stage="infer") > before)

    run_clients(server.port, send)
    server.fault(release=True, marks={})
    wait_until_idle(server)


def _disconnect_while_it_is_finished(context: ScenarioContext, server: ServerProcess) -> None:
    """Hang up when the last tile of a large image has been run: its answer takes long to encode.

    The server may notice that too late; then it is tried again.
    """
    request = context.known["restore"].valid_request(1, size=_LARGE_ANSWER)
    before = server.metric("sevenfold_cancelled_total", stage="finish")

    async def all_tiles_have_run() -> None:
        await poll(lambda: sum(size for _, _, size in server.faults()["runs"]) >= len(request.digests))
        await asyncio.sleep(_FINISHING_S)

    for _ in range(_MAX_TRIES):
        server.fault(forget=True)
        run_clients(server.port, lambda clients: _send_and_hang_up(clients, [request], all_tiles_have_run))
        wait_until_idle(server)
        if server.metric("sevenfold_cancelled_total", stage="finish") > before:
            break


def _measure_under_load(context: ScenarioContext, server: ServerProcess) -> Row:
    """Every second client hangs up after a random time; it is known when it did and when its batch began."""
    model, rng, count = context.known["clothing"], random.Random(3), context.pick(600, 60)
    requests = [model.valid_request(seed) for seed in range(count)]
    scheduled = [
        ScheduledRequest(i / 300, request.request, i, HangUp(None, rng.uniform(0.0, 0.4)) if i % 2 else None)
        for i, request in enumerate(requests)
    ]
    replies = open_loop(server.port, scheduled)
    digests: dict[str, Any] = server.faults()["computed"]
    hung_up = [reply for reply in replies if reply.status == HUNG_UP]
    started_at = {reply.key: _started_at(digests, requests[reply.key]) for reply in hung_up}
    before_batch = [reply for reply in hung_up if (at := started_at[reply.key]) is None or at > reply.ended]
    computed = [reply for reply in before_batch if started_at[reply.key] is not None]
    stayed = [reply for reply in replies if scheduled[reply.key].hang_up is None]
    answered = sum(reply.status == 200 for reply in stayed)
    fraction = 1 - len(computed) / max(1, len(before_batch))
    return Row(
        "cancellation",
        f"Requests whose clients disconnect at random times under load are not computed: {len(before_batch)} clients",
        f"≥ {_MIN_FRACTION:.0%} never computed; all others are answered",
        f"{fraction:.1%}; {answered} of {len(stayed)} others were answered",
        fraction >= _MIN_FRACTION and answered == len(stayed) and len(before_batch) > 0,
        timed=True,
        figures={"hung_up": len(hung_up), "before_batch": len(before_batch), "computed": len(computed)},
    )


def _started_at(digests: Mapping[str, Any], request: ValidRequest) -> float | None:
    return next((float(digests[digest][0]) for digest in request.digests if digest in digests), None)
