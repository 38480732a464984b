"""KServe's Python server: a process per core, and its V1 protocol.

Its V2 protocol turns binary tensors into lists of Python, and refuses bytes that are no text. KServe batches only in a
sidecar of its own.
"""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

from kserve import Model, ModelServer
from kserve.protocol.rest.multiprocess.server import RESTServerProcess

from benchmarks.peers.workload import Workload, read_assignment


class Answers(Model):
    """Answers one request at a time, in a thread."""

    def __init__(self, workload: Workload | None) -> None:
        super().__init__("model")
        self.workload = workload
        self.ready = True

    def __reduce__(self) -> tuple[Callable[[], "Answers"], tuple[()]]:
        """Load the model in each process that KServe starts: a session cannot be sent to one."""
        return load, ()

    async def predict(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> bytes:
        """Return the JSON."""
        body = base64.b64decode(payload["instances"][0]["b64"]) if "instances" in payload else payload
        return await asyncio.to_thread(self.workload.answer, body)


def load() -> Answers:
    """Load the model."""
    return Answers(read_assignment().load())


if __name__ == "__main__":
    # KServe ends processes that do not answer it within 5 s, while they still import, and so never starts on a busy
    # machine.
    RESTServerProcess.is_alive.__defaults__ = (60.0,)
    assignment = read_assignment()
    model = load() if assignment.processes == 1 else Answers(None)
    server = ModelServer(
        http_port=assignment.port, workers=assignment.processes, enable_grpc=False, access_log_format=None
    )
    server.start([model])
