"""While clients are served, the device work of loading a version is a job like their batches, with low priority."""

import asyncio
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.backends.base import Backend, BackendError
from service.backends.fake import FakeBackend, Gate
from service.backends.onnx import OnnxRuntime
from service.engine.context import WorkerPool
from service.engine.queue import StepQueue
from service.engine.scheduler import Deadline, Scheduler
from service.models.device_work import ALL_MEMORY, ScheduledWork
from tasks.contract import TensorSpec
from tests.model_folders import publish, with_other_checksum
from tests.service.conftest import Running, Start
from tests.service.faulty_server import HANGS
from tests.service.program import program
from tests.tiny.tabular import CREDIT, credit_graph
from tests.waiting import wait_until

ROW = {"rows": [{"income": 50, "debt": 5, "job": "baker"}]}


@contextmanager
def device(concurrency: int = 1) -> Iterator[tuple[WorkerPool, asyncio.AbstractEventLoop]]:
    """A device with an event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with ThreadPoolExecutor(concurrency) as threads:
        yield WorkerPool(threads, Scheduler(concurrency)), loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class Client:
    """Runs work on the device as the batches of clients are run."""

    def __init__(self, pool: WorkerPool, loop: asyncio.AbstractEventLoop) -> None:
        self._pool, self._loop = pool, loop
        self._queue = StepQueue(pool.scheduler)
        self._tasks: list[asyncio.Task[object]] = []

    async def _run(self, work: object, memory_bytes: int) -> object:
        def start() -> asyncio.Future[object]:
            return self._loop.run_in_executor(self._pool.threads, work)  # type: ignore[arg-type]

        return await self._queue.run(start, Deadline(self._loop.time() + 0.01), memory_bytes=memory_bytes)

    def submit(self, work: object, memory_bytes: int = 0) -> None:
        """Queue work; it is in the queue when this returns."""

        async def queue_it() -> None:
            self._tasks.append(self._loop.create_task(self._run(work, memory_bytes)))
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(queue_it(), self._loop).result()


def waiting_jobs(pool: WorkerPool, loop: asyncio.AbstractEventLoop) -> int:
    async def count() -> int:
        return sum(len(source) for source in pool.scheduler._sources)  # type: ignore[arg-type]

    return asyncio.run_coroutine_threadsafe(count(), loop).result()


def test_batches_of_clients_that_come_later_go_first() -> None:
    done: list[str] = []
    with device() as (pool, loop), ThreadPoolExecutor(1) as loader:
        work, client, gate = ScheduledWork(pool, loop), Client(pool, loop), threading.Event()
        client.submit(lambda: gate.wait(60))
        loading = loader.submit(work, lambda: done.append("loading"))
        wait_until(lambda: waiting_jobs(pool, loop) == 1)
        client.submit(lambda: done.append("client"))

        gate.set()
        loading.result()

    assert done == ["client", "loading"]


def test_work_that_needs_the_device_for_itself_waits_until_nothing_else_runs() -> None:
    running: list[str] = []
    with device(concurrency=2) as (pool, loop), ThreadPoolExecutor(1) as loader:
        pool.scheduler.memory_bytes = 1_000
        work, client, gate = ScheduledWork(pool, loop), Client(pool, loop), threading.Event()

        def run_client() -> None:
            running.append("client")
            gate.wait(60)
            running.remove("client")

        client.submit(run_client, 10)
        wait_until(lambda: running == ["client"])
        alone = loader.submit(work, lambda: list(running), ALL_MEMORY)
        wait_until(lambda: waiting_jobs(pool, loop) == 1)
        gate.set()

        assert alone.result() == []


def test_errors_of_the_work_reach_the_loader() -> None:
    def fail() -> None:
        raise TimeoutError("out of order")

    with device() as (pool, loop), pytest.raises(TimeoutError, match="out of order"):
        ScheduledWork(pool, loop)(fail)


def test_loading_ends_when_the_server_stops() -> None:
    with device() as (pool, loop):
        work = ScheduledWork(pool, loop)

    with pytest.raises(BackendError, match="stopping"):
        work(lambda: None)


class Hanging:
    """A runtime that serves one graph normally, and whose runs of another one wait for a gate."""

    def __init__(self) -> None:
        self.gate = Gate(timeout_s=60)
        self.graph = with_other_checksum(credit_graph())

    def __call__(self, graph: bytes, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Backend:
        backend = OnnxRuntime("cpu", 1)(graph, inputs, outputs)
        return FakeBackend.wrap(backend, faults=[self.gate]) if graph == self.graph else backend


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    runtime = Hanging()
    yield runtime
    runtime.gate.open()


def predict(server: Running) -> httpx.Response:
    return server.client.post("/v1/models/credit/predict", json=ROW)


def test_a_version_that_hangs_when_it_is_verified_is_rejected_and_liveness_reports_it(
    tmp_path: Path, start: Start, hanging: Hanging
) -> None:
    publish(tmp_path, "credit", CREDIT, credit_graph(), version=1)
    server = start(hanging, models=tmp_path, rescan_seconds=0, hang_seconds=0.2, batches_at_once=2)
    publish(tmp_path, "credit", CREDIT, hanging.graph, version=2)

    server.service.repository.rescan()
    live, answer = server.client.get("/health/live"), predict(server)
    (newest, _) = server.client.get("/v1/models").json()["models"][0]["versions"]
    hanging.gate.open()
    wait_until(lambda: server.client.get("/health/live").status_code == 200)

    assert live.status_code == 503
    assert (answer.status_code, answer.json()["version"]) == (200, "1")
    assert newest["reason"] == "The step did not end within the hang timeout."


def test_a_version_that_hangs_while_it_is_loaded_does_not_keep_the_program_from_stopping(tmp_path: Path) -> None:
    root = tmp_path / "models"
    publish(root, "credit", CREDIT, credit_graph(), version=1)
    row = {"income": HANGS, "debt": 5, "job": "baker"}
    publish(tmp_path / "staging", "credit", CREDIT, credit_graph(), version=2, request={"rows": [row]})
    flags = ("--rescan-seconds", "0.1", "--hang-seconds", "1", "--batches-at-once", "2")
    with program(root, *flags, module="tests.service.faulty_server") as (process, address, _):
        shutil.move(tmp_path / "staging" / "credit" / "2", root / "credit" / "2")
        wait_until(lambda: httpx.get(f"{address}/health/live", timeout=60).status_code == 503)
        answer = httpx.post(f"{address}/v1/models/credit/predict", json=ROW, timeout=60)
        process.send_signal(signal.SIGTERM)

        assert (answer.status_code, answer.json()["version"]) == (200, "1")
        assert process.wait(60) == 0
