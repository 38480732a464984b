"""Hostile requests, those of a kind at once, to a server of the shipped models, while other clients ask for rows."""

import asyncio
import zlib
from collections import Counter
from pathlib import Path

import pytest

from loadtests.clients import LoadProcess, Reply, ScheduledRequest, run_clients
from tests.faults.hostile.bombs import bomb
from tests.faults.hostile.corpus import KINDS, REPRESENTATIVES, representatives
from tests.faults.hostile.request import HostileRequest
from tests.faults.hostile_clients import MODELS as SERVED
from tests.faults.neighbours import NeighbourReplies, Neighbours
from tests.faults.sample_requests import known_models
from tests.faults.scenario import ScenarioContext, wait_until_idle

MODELS = Path(__file__).parents[2] / "models"
KNOWN = known_models(MODELS)


def schedule(request: HostileRequest) -> ScheduledRequest:
    return ScheduledRequest(0.0, request.make(), hang_up=request.hang_up, own_connection=True)


def send_at_once(port: int, requests: list[ScheduledRequest]) -> list[Reply]:
    async def send_all(clients) -> list[Reply]:
        return await asyncio.gather(*(clients.send(request) for request in requests))

    return run_clients(port, send_all)


@pytest.mark.slow
def test_a_hostile_request_is_refused_or_answered_and_others_are_answered_meanwhile() -> None:
    problems, neighbours = [], NeighbourReplies()

    with LoadProcess() as process, ScenarioContext(MODELS, KNOWN).server(*SERVED) as server:
        others = Neighbours.of(process, server.port, KNOWN)
        for kind in KINDS:
            requests = representatives(kind, KNOWN)
            scheduled = [schedule(request) for request in requests]
            meanwhile = others.start(1.0)
            replies = send_at_once(server.port, scheduled)
            problems += [request.problem(reply) for request, reply in zip(requests, replies, strict=True)]
            neighbours.add(meanwhile.result())
        wait_until_idle(server)
        live, _ = server.get("/health/live")

    assert [problem for problem in problems if problem] == []
    assert neighbours.failures == []
    assert len(neighbours.rows) > 0
    assert live == 200


def test_hostile_requests_have_names_of_their_own_and_fit_into_what_a_server_accepts() -> None:
    requests = [request for make in KINDS.values() for request in make(KNOWN)]

    assert max(Counter(request.name for request in requests).values()) == 1
    assert len(requests) >= 200
    for kind in ("json", "texts", "forms"):
        sizes = [len(request.make()) for request in KINDS[kind](KNOWN)]
        assert max(sizes) < 20_000_000


def test_every_kind_has_representatives() -> None:
    assert REPRESENTATIVES.keys() == KINDS.keys()
    for kind, names in REPRESENTATIVES.items():
        assert [request.name for request in representatives(kind, KNOWN)] == list(names)
        assert len(names) >= 2


@pytest.mark.parametrize("gzip", [False, True])
def test_a_bomb_decompresses_to_a_thousand_times_its_size(gzip: bool) -> None:
    content = bomb(20, byte=b"x", gzip=gzip)

    text = zlib.decompressobj(47).decompress(content)

    assert text == b"x" * 20_000_000
    assert len(text) > 900 * len(content)
