"""Ray Serve: a replica per core, each of which collects batches with `@serve.batch`."""

import signal
import threading

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.workload import MAX_BATCH, MAX_DELAY_S, read_assignment

_ONGOING = 512
"""Requests that a replica may have at a time; Ray's default of 5 would leave nothing to batch."""


@serve.deployment(
    num_replicas=read_assignment().processes, max_ongoing_requests=_ONGOING, ray_actor_options={"num_cpus": 1}
)
class Model:
    """A replica."""

    def __init__(self) -> None:
        self.workload = read_assignment().load()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=MAX_DELAY_S)
    async def answer(self, bodies: list[bytes]) -> list[bytes]:
        """Decode and run a batch."""
        return self.workload.answer_batch(bodies)

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        return Response(await self.answer(await request.body()), media_type="application/json")


if __name__ == "__main__":
    assignment = read_assignment()
    ray.init(
        num_cpus=assignment.processes,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": assignment.to_environment()},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": assignment.port})
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    serve.run(Model.bind(), route_prefix="/")
    stopped.wait()
    serve.shutdown()
    ray.shutdown()
