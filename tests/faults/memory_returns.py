"""Memory comes back: what the server keeps after the largest requests that it accepts."""

import asyncio
import io
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvloop
from PIL import Image

from loadtests.clients import ClientPool, Reply, ScheduledRequest, closed_loop
from tasks.contract import Limits
from tests.faults.process_tree import TreeUsage, tree_usage
from tests.faults.report import Row, first_of
from tests.faults.sample_requests import KnownModel
from tests.faults.scenario import ScenarioContext, wait_until_idle

_AT_ONCE = 16
_MAX_RATIO = 1.2
_SETTLE_S = 10.0
_SAMPLE_INTERVAL_S = 0.05
_MODELS = ("adult", "clothing", "imdb", "movielens", "restore")


@dataclass
class _Peak:
    """The largest resident memory that was seen, in MB: of the server's process, and of it with its descendants."""

    process_mb: float = 0.0
    tree_mb: float = 0.0


@dataclass(frozen=True)
class _Step:
    """One kind of largest request, and what it did to the memory.

    Attributes:
        replies: how often each status was sent.
        after: memory as long after the last reply as memory has to come back.
    """

    name: str
    replies: Mapping[int, int]
    peak: _Peak
    after: TreeUsage


def measure(context: ScenarioContext) -> list[Row]:
    """Sixteen of each of the largest requests at once, then ten seconds of rest."""
    with context.server(*_MODELS) as server:
        pid = server.process.pid
        usual = [context.known[name].valid_request(seed).request for name in _MODELS for seed in range(4)]
        closed_loop(server.port, usual, context.pick(32, 4), context.pick(6.0, 0.5))
        wait_until_idle(server)
        time.sleep(context.pick(2.0, 0.0))
        before, steps = tree_usage(pid), list[_Step]()
        for name, make in _largest_requests(context).items():
            with _peak_of(pid) as peak:
                replies = uvloop.run(_send_at_once(server.port, make(), context.pick(_AT_ONCE, 2)))
            wait_until_idle(server)
            _rest(pid, before, _SETTLE_S)
            statuses = {status: sum(r.status == status for r in replies) for status in {r.status for r in replies}}
            steps.append(_Step(name, statuses, peak, tree_usage(pid)))
    return [_answers_row(steps), _memory_row(before, steps)]


def _largest_requests(context: ScenarioContext) -> dict[str, Callable[[], bytes]]:
    known, limits = context.known, Limits()
    side, answer_side = math.isqrt(limits.pixels), math.isqrt(limits.answer_pixels // 4)
    photo = partial(large_photo, known["clothing"], side)
    return {
        "a JPEG of the most pixels": partial(photo, "JPEG"),
        "a grey PNG of the most pixels": partial(photo, "PNG", "L"),
        "the largest image to restore": partial(large_photo, known["restore"], answer_side, "PNG"),
        f"{limits.rows:,} rows": lambda: known["adult"].valid_request(1, size=limits.rows).request,
        f"{limits.characters:,} characters": partial(_text, known["imdb"], limits.characters),
        "1,000 ratings": lambda: known["movielens"].valid_request(1, size=1_000).request,
    }


def large_photo(model: KnownModel, side: int, format: str, mode: str = "RGB") -> bytes:
    """Return a request with a picture that has some content, without the time to encode noise."""
    gradient = Image.linear_gradient("L").resize((side, side))
    file = io.BytesIO()
    Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180))).convert(mode).save(
        file, format, **({"compress_level": 1} if format == "PNG" else {"quality": 80})
    )
    return model.request(f"image/{format.lower()}", file.getvalue())


def _text(model: KnownModel, characters: int) -> bytes:
    words = " ".join(golden.request["text"] for golden in model.goldens)
    text = (words + " ") * (characters // len(words) + 1)
    fields: dict[str, Any] = {"text": text[:characters], "words": 50}
    return model.request("application/json", json.dumps(fields).encode())


async def _send_at_once(port: int, request: bytes, count: int) -> list[Reply]:
    clients = ClientPool(port)
    try:
        return await asyncio.gather(*(clients.send(ScheduledRequest(0.0, request)) for _ in range(count)))
    finally:
        clients.close()


@contextmanager
def _peak_of(pid: int) -> Iterator[_Peak]:
    """Watch the memory of a process and its descendants."""
    peak, ended = _Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(_SAMPLE_INTERVAL_S):
            usage = tree_usage(pid)
            peak.process_mb = max(peak.process_mb, usage.root_mb)
            peak.tree_mb = max(peak.tree_mb, usage.tree_mb)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _rest(pid: int, before: TreeUsage, seconds: float) -> None:
    """Wait until memory has come back, at most this long."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and _ratio(before, tree_usage(pid)) > _MAX_RATIO:
        time.sleep(_SAMPLE_INTERVAL_S)


def _ratio(before: TreeUsage, after: TreeUsage) -> float:
    """Return how much more memory is used after: of the server's process or of all its processes, if that is more."""
    return max(after.root_mb / before.root_mb, after.tree_mb / before.tree_mb)


def _answers_row(steps: list[_Step]) -> Row:
    problems = [f"{step.name}: {dict(step.replies)}" for step in steps if set(step.replies) - {200, 503, 504}]
    unanswered = [f"{step.name}: {dict(step.replies)}" for step in steps if 200 not in step.replies]
    return Row(
        "memory_returns",
        f"The largest requests that are accepted, {_AT_ONCE} at once, are answered",
        "200, or 503 and 504 for those that are too many",
        f"{len(problems + unanswered)} of {len(steps)} kinds got something else{first_of(problems + unanswered)}",
        not problems and not unanswered,
        figures={step.name: dict(step.replies) for step in steps},
    )


def _memory_row(before: TreeUsage, steps: list[_Step]) -> Row:
    worst = max(steps, key=lambda step: _ratio(before, step.after))
    highest = max(steps, key=lambda step: step.peak.tree_mb)
    return Row(
        "memory_returns",
        f"Memory comes back within {_SETTLE_S:g} s of the largest requests, {_AT_ONCE} at once",
        f"resident memory of the server's process, and of all its processes, ≤ {_MAX_RATIO} × as after warm-up",
        f"{_ratio(before, worst.after):.2f} × ({worst.name}): "
        f"process {before.root_mb:.0f} → {worst.after.root_mb:.0f} MB, "
        f"all {before.tree_mb:.0f} → {worst.after.tree_mb:.0f} MB; "
        f"at most {highest.peak.tree_mb:,.0f} MB meanwhile ({highest.name})",
        _ratio(before, worst.after) <= _MAX_RATIO,
        timed=True,
        figures={
            "before": vars(before),
            "steps": {step.name: {"peak": vars(step.peak), "after": vars(step.after)} for step in steps},
        },
    )
