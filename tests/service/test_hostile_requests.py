"""Hostile requests, one after the other, to a server of the shipped models, while other clients ask for rows."""

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


def send(port: int, requests: list[HostileRequest]) -> list[str]:
    """Send each request when the one before it has been answered, and return what is wrong with the replies."""

    async def send_all(clients) -> list[str | None]:
        return [request.problem(await reply(clients, request)) for request in requests]

    async def reply(clients, request: HostileRequest) -> Reply:
        return await clients.send(ScheduledRequest(0.0, request.make(), hang_up=request.hang_up, own_connection=True))

    return [problem for problem in run_clients(port, send_all) if problem]


@pytest.mark.slow
def test_a_hostile_request_is_refused_or_answered_and_others_are_answered_meanwhile() -> None:
    problems, neighbours = [], NeighbourReplies()

    with LoadProcess() as process, ScenarioContext(MODELS, KNOWN).server(*SERVED) as server:
        others = Neighbours.of(process, server.port, KNOWN)
        for kind in KINDS:
            meanwhile = others.start(0.5)
            problems += send(server.port, representatives(kind, KNOWN))
            neighbours.add(meanwhile.result())
        wait_until_idle(server)
        live, _ = server.get("/health/live")

    assert problems == []
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
