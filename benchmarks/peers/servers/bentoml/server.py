"""BentoML: a worker per core, and its adaptive batching."""

import os
import sys
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from benchmarks.peers.workload import MAX_BATCH, read_assignment


@bentoml.service(workers=read_assignment().processes, traffic={"timeout": 60})
class Model:
    """A worker."""

    def __init__(self) -> None:
        self.workload = read_assignment().load()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=10_000, route="/predict")
    def predict(self, bodies: list[bytes], /) -> list[Annotated[bytes, ContentType("application/json")]]:
        """Decode and run a batch."""
        return self.workload.answer_batch(bodies)


if __name__ == "__main__":
    port = str(read_assignment().port)
    folder = os.path.dirname(os.path.abspath(__file__))
    os.execv(  # noqa: S606
        sys.executable,
        [sys.executable, "-m", "bentoml", "serve", "server:Model", "--working-dir", folder, "--port", port, "--host", "127.0.0.1"],
    )
