"""mosec: its server in Rust, and a worker per core that decodes and runs batches."""

import os
from typing import Any

from mosec import Server, Worker

from benchmarks.peers.workload import MAX_BATCH, MAX_DELAY_S, read_assignment


class Model(Worker):
    """Answers batches of bodies with JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.workload = read_assignment().load()

    def deserialize(self, data: bytes) -> bytes:
        """Take the body as it is: a list of them is decoded in `forward`."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """Send the JSON as it is."""
        return data

    def forward(self, data: Any) -> list[bytes]:
        """Decode and run a batch."""
        return self.workload.answer_batch(data)


if __name__ == "__main__":
    assignment = read_assignment()
    os.environ |= {"MOSEC_ADDRESS": "127.0.0.1", "MOSEC_PORT": str(assignment.port), "MOSEC_LOG_LEVEL": "warning"}
    server = Server()
    server.append_worker(
        Model,
        num=assignment.processes,
        max_batch_size=MAX_BATCH,
        max_wait_time=round(MAX_DELAY_S * 1000),
        route="/predict",
    )
    server.run()
