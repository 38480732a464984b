"""What becomes of requests when the device, or a thread, fails: no room, a call that hangs, an error for good."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from loadtests.clients import NO_ANSWER, Call, Reply, one_by_one, open_loop
from tests.faults.report import Row
from tests.faults.sample_requests import asked_alone
from tests.faults.scenario import Run, first_of, ms
from tests.faults.server_process import Host, started, wait_until

_HANG_S = 1.0
_NOTICED_S = 1.0
_LOST = 70


def measure_memory(run: Run) -> list[Row]:
    """A batch for which there is no room: its members are answered, and only one that never fits is refused."""
    model, count = run.known["clothing"], 14
    with run.some("clothing") as models, started(models, "--max-batch", "8", faulty=True) as host:
        good = asked_alone(host.port, [model.good(seed) for seed in range(count)])
        awkward, culprit = asked_alone(host.port, [model.good(seed) for seed in (100, 101)])
        holders = [model.good(seed) for seed in range(200, 208)]
        host.fault(
            marks={digest: ("hold", 0.4) for one in holders for digest in one.digests}
            | dict.fromkeys(awkward.digests, ("out_of_memory_in_company", 0))
            | dict.fromkeys(culprit.digests, ("out_of_memory", 0))
        )
        # Those that are held come first, so that the others wait together and share a batch.
        calls = [Call(0.0, one.request, -1) for one in holders]
        calls += [Call(0.15, one.request, key) for key, one in enumerate([*good, awkward, culprit])]
        replies = {reply.key: reply for reply in open_loop(host.port, calls)}
    wrong = [problem for key, one in enumerate([*good, awkward]) if (problem := one.wrong(replies[key]))]
    refused = _told(replies[count + 1])
    return [
        Row(
            "memory",
            f"A batch for which the device has no room is split: {count + 1} that fit in smaller ones, one never",
            "all are answered; the one alone gets 503 `out_of_memory`",
            f"{count + 1 - len(wrong)} of {count + 1} answered{first_of(wrong)}; the one: {refused}",
            not wrong and refused == "503 out_of_memory",
            figures={"wrong": wrong, "refused": refused},
        )
    ]


def measure_hang(run: Run) -> list[Row]:
    """A call of the device that does not return: who waits for it is answered, health says so, and then it passes."""
    flags = ("--hang-seconds", f"{_HANG_S:g}")
    with run.some("clothing", "adult") as models, started(models, *flags, faulty=True) as host:
        hanging = run.known["clothing"].good(1)
        others = asked_alone(
            host.port, [run.known[name].good(seed) for name in ("adult", "clothing") for seed in (2, 3)]
        )
        host.fault(marks=dict.fromkeys(hanging.digests, ("hold", 30.0)))
        calls = [Call(0.0, hanging.request, -1)]
        calls += [Call(0.2 + 0.1 * i, others[i % 4].request, i % 4) for i in range(20)]
        replies = open_loop(host.port, calls)
        live, told = host.get("/health/live")
        host.fault(release=True, marks={})
        mended_s = wait_until(lambda: host.get("/health/live")[0] == 200, seconds=10)
        replies += one_by_one(host.port, [one.request for one in others])
    hung = next(reply for reply in replies if reply.key == -1)
    wrong = [problem for reply in replies if reply.key >= 0 and (problem := others[reply.key].wrong(reply))]
    in_time = run.in_time(hung.seconds, _HANG_S + _NOTICED_S)
    holds = _told(hung) == "503 device_hung" and live == 503 and not wrong and in_time
    return [
        Row(
            "hang",
            f"A call of the device that hangs is noticed (watchdog: {_HANG_S:g} s)",
            "503 `device_hung` and liveness 503 within another second; others are answered; mended when it returns",
            f"{_told(hung)} after {ms(hung.seconds)}; liveness {live}; {len(wrong)} of {len(replies) - 1} others failed"
            f"{first_of(wrong)}; live again {ms(mended_s)} after it returned",
            holds,
            figures={"seconds": hung.seconds, "health": told, "mended_s": mended_s, "wrong": wrong[:10]},
        )
    ]


def measure_lost(run: Run) -> list[Row]:
    """An error after which nothing runs on the device: everybody is answered, and the process ends to be restarted."""
    with run.some("clothing", "adult") as models, started(models, faulty=True) as host:
        cause = run.known["clothing"].good(1)
        others = asked_alone(host.port, [run.known["adult"].good(2), *map(run.known["clothing"].good, (3, 4, 5))])
        host.fault(marks=dict.fromkeys(cause.digests, ("lost", 0)))
        calls = [Call(0.1, cause.request, -1)]
        calls += [Call(0.1, one.request, key) for key, one in enumerate(others)]
        began = time.monotonic()
        replies = open_loop(host.port, calls)
        status = host.process.wait(30)
        seconds = time.monotonic() - began - 0.1
    unanswered = [f"{reply.key}: {reply.status}" for reply in replies if reply.status == NO_ANSWER]
    told = _told(next(reply for reply in replies if reply.key == -1))
    return [
        Row(
            "lost",
            "After a sticky CUDA error (made by the fake) the process ends for its supervisor to start it anew",
            f"503 `device_lost`; all that is under way is answered; exit code {_LOST}",
            f"{told}; {len(unanswered)} of {len(replies)} without an answer; exit code {status} after {ms(seconds)}",
            told == "503 device_lost" and not unanswered and status == _LOST,
            figures={"seconds": seconds, "exit": status, "unanswered": unanswered},
        )
    ]


def measure_threads(run: Run) -> list[Row]:
    """A thread that dies under its pool: liveness says so."""
    return [_killed(run, pool) for pool in ("worker", "cpu")]


def _killed(run: Run, pool: str) -> Row:
    model = run.known["clothing"]
    with run.some("clothing") as models, started(models, "--max-batch", "8", faulty=True) as host:
        # All at once: one that is alone is taken all the way by one thread of the device.
        sent = [model.good(seed, X_Request_Timeout_Ms="2000") for seed in range(12)]
        calls = [Call(0.0, one.request, key) for key, one in enumerate(sent)]
        open_loop(host.port, calls)
        host.fault(kill=pool)
        # It dies when it wakes, and takes with it what it was woken for.
        with ThreadPoolExecutor(1) as watching:
            noticing = watching.submit(_until_not_live, host)
            replies = open_loop(host.port, calls)
            noticed = noticing.result()
        told = host.get("/health/live")[1]
    unanswered = sum(reply.status == NO_ANSWER for reply in replies)
    counted = ", ".join(f"{count} × {status}" for status, count in Counter(r.status for r in replies).items())
    return Row(
        "threads",
        f"A thread of the pool '{pool}' that dies is noticed",
        f"liveness 503 within {_NOTICED_S:g} s; nobody is left without an answer",
        f"{'never' if noticed is None else ms(noticed)} after the request that woke it; answers: {counted}",
        run.in_time(noticed, _NOTICED_S) and not unanswered,
        figures={"seconds": noticed, "health": told, "statuses": [reply.status for reply in replies]},
    )


def _until_not_live(host: Host) -> float | None:
    try:
        return wait_until(lambda: host.get("/health/live")[0] == 503, seconds=5)
    except TimeoutError:
        return None


def _told(reply: Reply) -> str:
    """Status and code of an answer."""
    if reply.status < 400:
        return str(reply.status or "no answer")
    error: dict[str, Any] = json.loads(reply.body)["error"]
    return f"{reply.status} {error['code']}"
