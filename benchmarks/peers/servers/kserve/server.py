"""KServe's Python server: a process per core, and the Open Inference Protocol with binary tensors.

KServe batches only in a sidecar of its own, for its V1 protocol.
"""

import asyncio

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

from benchmarks.peers.workload import read_assignment


class Sevenfold(Model):
    """Answers one request at a time, in a thread."""

    def __init__(self) -> None:
        super().__init__("model")
        self.workload = None

    def load(self) -> bool:
        """Load the model."""
        self.workload = read_assignment().load()
        self.ready = True
        return True

    async def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:
        """Return the JSON as a BYTES tensor."""
        (body,) = payload.inputs[0].as_numpy().flatten()
        answer = await asyncio.to_thread(self.workload.answer, body)
        output = InferOutput("answer", [1, 1], "BYTES")
        output.set_data_from_numpy(np.array([[answer]], object), binary_data=True)
        return InferResponse(payload.id, "model", [output])


if __name__ == "__main__":
    assignment = read_assignment()
    model = Sevenfold()
    model.load()
    ModelServer(
        http_port=assignment.port, workers=assignment.processes, enable_grpc=False, access_log_format=None
    ).start([model])
