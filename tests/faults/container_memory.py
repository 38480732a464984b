"""Under the memory limit of a container, no request makes the kernel kill a process of the server."""

import asyncio
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from loadtests.clients import NO_RESPONSE, ClientPool, Reply, ScheduledRequest, send_sequentially
from loadtests.server import start_server
from tests.control_groups import MODULE, CannotLimit, LimitedGroup, limited_group
from tests.faults.hostile.corpus import KINDS, representatives
from tests.faults.hostile.request import HostileRequest, error_of
from tests.faults.memory_returns import large_photo
from tests.faults.report import Row, first_of
from tests.faults.sample_requests import KnownModel, ValidRequest, with_expected
from tests.faults.scenario import ScenarioContext, wait_until_idle
from tests.faults.server_process import ServerProcess

LIMIT_BYTES = 1 << 30
_CONCURRENCIES = (1, 8, 40)
_PHOTOS_AT_ONCE = 64
_PHOTO_SIDE = 5_000
_CODES = frozenset({"overloaded", "deadline_exceeded"})
"""Codes of the 5xx errors that are right when memory or time are short."""


@dataclass
class _Measured:
    """What became of the requests.

    Attributes:
        problems: replies that are not right.
        statuses: how often each was sent.
        peak_mb: the most memory that the group used, with page cache that can be dropped.
    """

    problems: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    peak_mb: float = 0.0
    killed: int = 0
    is_ready: bool = False
    wrong: list[str] = field(default_factory=list)


def measure(context: ScenarioContext) -> list[Row]:
    """All models in 1 GiB: hostile requests, 1, 8 and 40 at once, and 64 large photos at once; nothing is killed."""
    try:
        with limited_group(memory_bytes=LIMIT_BYTES) as group:
            measured = _measure_in(context, group)
    except CannotLimit as error:
        print(f"  container_memory is not measured: {error}", file=sys.stderr)
        return []
    return [_killed_row(measured), _replies_row(measured), _after_row(measured)]


def _measure_in(context: ScenarioContext, group: LimitedGroup) -> _Measured:
    measured = _Measured()
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        environment = os.environ | group.environment
        options: dict[str, Any] = {"module": MODULE, "stderr": log, "env": environment, "start_new_session": True}
        with start_server(context.models, "--log-level", "warning", **options) as (process, port):
            server = ServerProcess(process, port, Path(folder))
            usual = with_expected(
                port, [model.valid_request(seed) for model in context.known.values() for seed in (1, 2)]
            )
            for name, content, at_once in _attacks(context):
                replies = uvloop.run(_send_at_once(port, content, at_once))
                _count(measured, name, replies)
                if process.poll() is not None:
                    measured.problems.append(f"{name}: the server ended")
                    return measured
            wait_until_idle(server)
            measured.is_ready = server.get("/health/ready")[0] == 200 and server.get("/health/live")[0] == 200
            measured.wrong = list(_wrong_answers(port, usual))
            measured.killed, measured.peak_mb = group.killed(), group.peak_bytes() / 1e6
    return measured


def _attacks(context: ScenarioContext) -> Iterator[tuple[str, bytes, int]]:
    """Yield name, bytes and number at once of what is sent."""
    for request in _hostile(context):
        content = request.make()
        for at_once in context.pick(_CONCURRENCIES, (8,)):
            yield f"{request.name} × {at_once}", content, at_once
    for name, content in _photos(context.known):
        yield f"{name} × {_PHOTOS_AT_ONCE}", content, _PHOTOS_AT_ONCE


def _hostile(context: ScenarioContext) -> Iterator[HostileRequest]:
    for kind, make in KINDS.items():
        requests = make(context.known) if context.whole_corpus else representatives(kind, context.known)
        for number, request in enumerate(requests):
            if request.hang_up is None and not request.may_close and (not context.short or number == 0):
                yield request


def _photos(known: Mapping[str, KnownModel]) -> Iterator[tuple[str, bytes]]:
    yield "a JPEG of 25 MP to segment", large_photo(known["camvid"], _PHOTO_SIDE, "JPEG")
    yield "a grey PNG of 25 MP with a face", large_photo(known["faces"], _PHOTO_SIDE, "PNG", "L")
    yield "an image of 1 MP to restore", large_photo(known["restore"], 1_000, "PNG")


async def _send_at_once(port: int, content: bytes, count: int) -> list[Reply]:
    clients = ClientPool(port)
    try:
        request = ScheduledRequest(0.0, content, own_connection=True)
        return await asyncio.gather(*(clients.send(request) for _ in range(count)))
    finally:
        clients.close()


def _count(measured: _Measured, name: str, replies: list[Reply]) -> None:
    measured.sent += len(replies)
    measured.statuses.update(reply.status for reply in replies)
    for reply in replies:
        if reply.status == NO_RESPONSE:
            measured.problems.append(f"{name}: no response")
        elif reply.status >= 500 and error_of(reply)[0] not in _CODES:
            measured.problems.append(f"{name}: {reply.status} {error_of(reply)}")


def _wrong_answers(port: int, usual: list[ValidRequest]) -> Iterator[str]:
    for request, reply in zip(usual, send_sequentially(port, [request.request for request in usual]), strict=True):
        if (reply.status, reply.body) != (200, request.expected):
            yield f"{request.model.name}: {reply.status}"


def _killed_row(measured: _Measured) -> Row:
    return Row(
        "container_memory",
        "All models in a container of 1 GiB: the kernel kills no process, whatever is sent",
        "0 killed",
        f"{measured.killed} killed by {measured.sent:,} requests; at most {measured.peak_mb:,.0f} MB with page cache",
        measured.killed == 0 and measured.peak_mb > 0,
    )


def _replies_row(measured: _Measured) -> Row:
    return Row(
        "container_memory",
        "In a container of 1 GiB every request is answered, refused, or told to come again",
        "200, 4xx, 503 overloaded or 504",
        f"{len(measured.problems)} of {measured.sent:,} got something else{first_of(measured.problems)}",
        not measured.problems,
        figures={str(status): count for status, count in sorted(measured.statuses.items())},
    )


def _after_row(measured: _Measured) -> Row:
    return Row(
        "container_memory",
        "Afterwards the server in a container of 1 GiB is ready, and answers as before",
        "ready, every answer the same",
        f"{'ready' if measured.is_ready else 'not ready'}, {len(measured.wrong)} differ{first_of(measured.wrong)}",
        measured.is_ready and not measured.wrong,
    )
