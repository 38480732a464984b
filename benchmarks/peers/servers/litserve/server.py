"""LitServe: a worker per core, each of which decodes and runs batches."""

from collections.abc import Sequence
from typing import Any

import litserve
from fastapi import Request, Response

from benchmarks.peers.workload import MAX_BATCH, MAX_DELAY_S, read_assignment


class Api(litserve.LitAPI):
    """The steps of a request."""

    def setup(self, device: str) -> None:
        """Load the model, in each worker."""
        self.workload = read_assignment().load()

    def decode_request(self, request: Request) -> Any:
        """Return a sample of the file of a form, or of JSON."""
        return self.workload.decode(request["body"].file.read() if "body" in request else request)

    def batch(self, samples: Sequence[Any]) -> Sequence[Any]:
        """Leave the samples as they are: the model stacks them."""
        return samples

    def predict(self, samples: Sequence[Any]) -> list[bytes]:
        """Run a batch."""
        return self.workload.predict(samples)

    def unbatch(self, answers: list[bytes]) -> list[bytes]:
        """Return an answer for each sample."""
        return answers

    def encode_response(self, answer: bytes) -> Response:
        """Send the JSON as it is."""
        return Response(answer, media_type="application/json")


if __name__ == "__main__":
    assignment = read_assignment()
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=MAX_DELAY_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=assignment.processes)
    server.run(host="127.0.0.1", port=assignment.port, generate_client_file=False, log_level="warning")
