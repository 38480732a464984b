"""What every scenario gets, and what several of them need."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from loadtests.clients import ClientPool, Reply, ScheduledRequest
from tasks.manifest import read_manifest, write_manifest
from tests.faults.published_versions import remove_variants
from tests.faults.sample_requests import KnownModel
from tests.faults.server_process import ServerProcess, run_server
from tests.waiting import wait_until

T = TypeVar("T")
PATIENCE_S = 60.0
"""How long to wait for what has to happen, however busy the machine is."""
FIRST_VERSION = "1"
"""The version of the copies of models to which scenarios add versions."""
_HOLD_S = 60.0


@dataclass(frozen=True)
class ScenarioContext:
    """A run of the harness.

    Attributes:
        models: the folder of the shipped models.
        known: the newest version of each.
        short: whether this is the short form, which takes seconds and judges no times.
        whole_corpus: whether all hostile requests are sent, instead of those that represent their kind.
        shared: in the short form, the server that several scenarios use in turn.
    """

    models: Path
    known: Mapping[str, KnownModel]
    short: bool = False
    whole_corpus: bool = False
    shared: ServerProcess | None = None

    def pick(self, full: T, short: T) -> T:
        """Return the first value in a full run, the second in a short one."""
        return short if self.short else full

    def within(self, seconds: float | None, limit: float) -> bool:
        """Return whether something happened in time; a short run only judges that it happened."""
        return seconds is not None and (self.short or seconds <= limit)

    @contextmanager
    def server(self, *names: str, flags: Sequence[str] = (), faulty: bool = False) -> Iterator[ServerProcess]:
        """Start a server of some models; if there is a shared server, use that instead, without any faults."""
        if self.shared is not None:
            self.shared.fault(marks={}, release=True, forget=True)
            yield self.shared
        else:
            with self.subset(*names) as models, run_server(models, *flags, faulty=faulty) as server:
                yield server

    @contextmanager
    def subset(self, *names: str) -> Iterator[Path]:
        """Make a folder with links to these models, or to all if none is named; a server starts faster with few."""
        with tempfile.TemporaryDirectory() as folder:
            for name in names or self.known:
                (Path(folder) / name).symlink_to((self.models / name).resolve(), target_is_directory=True)
            yield Path(folder)

    @contextmanager
    def copies(self, *names: str) -> Iterator[Path]:
        """Make a folder with copies of these models, as version 1, whichever was shipped; further ones may be added.

        They have no variants, since scenarios change graphs.
        """
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                copy = Path(folder) / name / FIRST_VERSION
                shutil.copytree(self.known[name].folder, copy)
                remove_variants(copy)
                write_manifest(copy, read_manifest(copy).model_copy(update={"version": FIRST_VERSION}))
            yield Path(folder)


def max_batch_seconds(server: ServerProcess, name: str) -> float:
    """Return how long the largest batch of a model takes, from the server's measured latency profile."""
    limit = server.metric("sevenfold_batch_limit", model=name)
    curve = server.get(f"/v1/models/{name}")[1]["curve"]
    return max(float(point["seconds"]) for point in curve if point["size"] <= limit)


def wait_until_idle(server: ServerProcess) -> None:
    """Wait until no request is in flight."""
    wait_until(lambda: server.metric("sevenfold_requests_in_flight") == 0, timeout_s=PATIENCE_S)


async def poll(condition: Callable[[], bool], *, seconds: float = PATIENCE_S) -> None:
    """Poll until the condition holds, while the clients of this event loop go on. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def busy_device(
    server: ServerProcess, clients: ClientPool, model: KnownModel, marks: Mapping[str, tuple[str, float]] | None = None
) -> AsyncIterator[None]:
    """Occupy the device with requests that are held, plus one that waits in the queue; release them at the end.

    `marks` are further faults, which stay when the device is released.
    """
    marks = marks or {}
    requests = [model.valid_request(seed) for seed in range(8_000, 8_032)]
    hold = {digest: ("hold", _HOLD_S) for request in requests for digest in request.digests}
    server.fault(marks={**marks, **hold})
    tasks: list[asyncio.Task[Reply]] = []
    try:
        for request in requests:
            tasks.append(asyncio.create_task(clients.send(ScheduledRequest(0.0, request.request))))
            await poll(lambda: _held_and_queued(server, model)[0] == len(tasks))
            # Looked at twice: it is in the queue for a moment before the device takes it, too.
            if all(_held_and_queued(server, model)[1] for _ in range(2)):
                break
        yield
    finally:
        server.fault(marks=dict(marks), release=True)
        await asyncio.gather(*tasks)


def _held_and_queued(server: ServerProcess, model: KnownModel) -> tuple[int, int]:
    """Return how many requests are held or queued, and how many of them are queued."""
    held = int(server.faults()["held"])
    queued = int(server.metric("sevenfold_queue_depth", model=model.name))
    return held + queued, queued
