"""Whether what nobody waits for any more is computed all the same: clients that go at each stage."""

import asyncio
import io
import random
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from loadtests.clients import LEFT, Call, Clients, Leaving, Reply, open_loop, with_clients
from tests.faults.report import Row
from tests.faults.sample_requests import Sent
from tests.faults.scenario import Run
from tests.faults.server_process import Host, started, wait_until

_SHARE = 0.95
_HELD_S = 20.0
_LARGE, _LARGE_ANSWER = 4_900, 600
"""Pixels of a side: of a picture that takes a worker long to decode, of one whose answer takes long to make."""
_TOLD_S, _TRIES = 0.02, 5


def measure(run: Run) -> list[Row]:
    """Clients that go while the device is held, stage by stage; and at random under load."""
    with run.some("clothing", "restore") as models:
        with started(models, "--max-batch", "8", faulty=True) as host:
            staged = _by_stage(run, host)
        with started(models, "--max-batch", "8", faulty=True) as host:
            return [staged, _under_load(run, host)]


def _by_stage(run: Run, host: Host) -> Row:
    """How many of those that had gone were computed, and under which stage they were counted."""
    model, each = run.known["clothing"], run.pick(20, 5)
    sent = [model.good(seed) for seed in range(3 * each)]
    body, decode, queue = sent[:each], sent[each : 2 * each], sent[2 * each :]
    computed = {"receive": _gone_in_the_body(host, body)}
    computed["decode"] = _gone_while_others_are_decoded(run, host, decode)
    computed["queue"] = _gone_while_the_device_is_held(run, host, queue)
    _gone_while_it_runs(run, host)
    _gone_while_it_is_finished(run, host)
    counted = {
        stage: host.metric("sevenfold_cancelled_total", stage=stage)
        for stage in ("receive", "decode", "queue", "infer", "finish")
    }
    enough = all(counted[stage] >= _SHARE * each for stage in computed) and counted["infer"] and counted["finish"]
    share = 1 - sum(computed.values()) / len(sent)
    told = ", ".join(f"{stage} {count:.0f}" for stage, count in counted.items())
    return Row(
        "leaving",
        f"Who goes before the batch begins is not computed: {each} clients each while it is received, decoded, queued",
        f"≥ {_SHARE:.0%} never computed, counted by stage",
        f"{share:.1%}; counted: {told}",
        share >= _SHARE and bool(enough),
        figures={"computed": computed, "counted": counted, "each": each},
    )


def _gone_in_the_body(host: Host, sent: Sequence[Sent]) -> int:
    calls = [Call(0.0, one.request, leaving=Leaving(len(one.request) // 2, 0.05)) for one in sent]
    open_loop(host.port, calls)
    return _computed(host, sent)


def _gone_while_others_are_decoded(run: Run, host: Host, sent: Sequence[Sent]) -> int:
    """Behind large pictures: there is a worker for each core, and all of them decode those."""
    large = run.known["clothing"].request("image/png", _large_picture())
    calls = [Call(0.0, large, -1) for _ in range(run.pick(12, 8))]
    calls += [Call(0.15, one.request, leaving=Leaving(None, 0.05)) for one in sent]
    replies = open_loop(host.port, calls)
    return _computed(host, sent) if all(r.status in (200, LEFT) for r in replies) else len(sent)


def _large_picture() -> bytes:
    """As a PNG, which cannot be decoded smaller than it is."""
    file = io.BytesIO()
    Image.new("RGB", (_LARGE, _LARGE), "teal").save(file, "PNG", compress_level=1)
    return file.getvalue()


def _gone_while_the_device_is_held(run: Run, host: Host, sent: Sequence[Sent]) -> int:
    async def go(clients: Clients) -> None:
        holding = await _hold(run, host, clients)
        await clients.open_loop([Call(0.0, one.request, leaving=Leaving(None, 0.3)) for one in sent])
        host.fault(release=True)
        for held in holding:
            await held

    with_clients(host.port, go)
    return _computed(host, sent)


async def _hold(run: Run, host: Host, clients: Clients) -> list[Any]:
    """Occupies every place of the device with requests that are held, one after the other; they are still asked."""
    model, asked = run.known["clothing"], list[asyncio.Task[Reply]]()
    sent = [model.good(seed) for seed in range(8_000, 8_016)]
    host.fault(marks={digest: ("hold", _HELD_S) for one in sent for digest in one.digests})
    for one in sent:
        before = host.seen()["held"]
        asked.append(asyncio.create_task(clients.ask(Call(0.0, one.request))))
        for _ in range(50):
            await asyncio.sleep(0.01)
            if host.seen()["held"] > before:
                break
        else:
            return asked
    return asked


def _gone_while_it_runs(run: Run, host: Host) -> None:
    one = run.known["clothing"].good(9_000)
    host.fault(marks=dict.fromkeys(one.digests, ("hold", 1.0)))
    open_loop(host.port, [Call(0.0, one.request, leaving=Leaving(None, 0.4))])
    host.fault(release=True, marks={})


def _gone_while_it_is_finished(run: Run, host: Host) -> None:
    """A large picture's answer takes long to be made: its client goes when the last of its tiles has been run.

    The server may not have heard of that yet, or the answer may be made already: then another tries.
    """
    one = run.known["restore"].good(1, size=_LARGE_ANSWER)

    async def go(clients: Clients) -> None:
        asking = asyncio.create_task(clients.ask(Call(0.0, one.request, leaving=Leaving(None, _HELD_S))))
        while sum(size for _, _, size in host.seen()["runs"]) < len(one.digests):
            await asyncio.sleep(0.01)
        await asyncio.sleep(_TOLD_S)
        asking.cancel()
        await asyncio.wait([asking])

    for _ in range(_TRIES):
        _wait_until_idle(host)
        host.fault(forget=True)
        with_clients(host.port, go)
        time.sleep(1.0)
        if host.metric("sevenfold_cancelled_total", stage="finish"):
            break


def _computed(host: Host, sent: Sequence[Sent]) -> int:
    """How many of these have been run, once nothing is under way any more."""
    _wait_until_idle(host)
    seen = host.seen()["computed"]
    return sum(any(digest in seen for digest in one.digests) for one in sent)


def _wait_until_idle(host: Host) -> None:
    wait_until(lambda: host.metric("sevenfold_requests_in_flight") == 0, seconds=_HELD_S)


def _under_load(run: Run, host: Host) -> Row:
    """Under load every second client goes after a time of its own; when it went and its batch began is known."""
    model, chance, count = run.known["clothing"], random.Random(3), run.pick(600, 120)
    sent = [model.good(seed) for seed in range(count)]
    calls = [
        Call(i / 300, one.request, i, Leaving(None, chance.uniform(0.0, 0.4)) if i % 2 else None)
        for i, one in enumerate(sent)
    ]
    replies = open_loop(host.port, calls)
    seen: dict[str, Any] = host.seen()["computed"]
    gone = [reply for reply in replies if reply.status == LEFT]
    began = {reply.key: _began(seen, sent[reply.key]) for reply in gone}
    in_time = [reply for reply in gone if (at := began[reply.key]) is None or at > reply.ended]
    in_vain = [reply for reply in in_time if began[reply.key] is not None]
    stayed = [reply for reply in replies if calls[reply.key].leaving is None]
    answered = sum(reply.status == 200 for reply in stayed)
    share = 1 - len(in_vain) / max(1, len(in_time))
    return Row(
        "leaving",
        f"The same at random under load: {len(in_time)} clients that went before their batch began",
        f"≥ {_SHARE:.0%} never computed; who stays is answered",
        f"{share:.1%}; {answered} of {len(stayed)} that stayed were answered",
        share >= _SHARE and answered == len(stayed) and len(in_time) > 0,
        timed=True,
        figures={"gone": len(gone), "before_batch": len(in_time), "computed": len(in_vain)},
    )


def _began(seen: dict[str, Any], one: Sent) -> float | None:
    return next((float(seen[digest][0]) for digest in one.digests if digest in seen), None)
