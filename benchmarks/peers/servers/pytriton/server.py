"""pytriton: a real Triton with dynamic batching, and an instance of the model per core."""

import signal

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.workload import MAX_BATCH, read_assignment


class Instance:
    """One of the instances, each with a session of its own."""

    def __init__(self) -> None:
        self.workload = read_assignment().load()

    @batch
    def __call__(self, body: NDArray[np.bytes_]) -> dict[str, NDArray[np.bytes_]]:
        """Decode and run a batch of bodies, bytes (n, 1)."""
        answers = self.workload.answer_batch([bytes(row[0]) for row in body])
        return {"answer": np.array([[answer] for answer in answers], object)}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # It removes its shared memory only after SIGINT.
    assignment = read_assignment()
    config = TritonConfig(
        http_address="127.0.0.1", http_port=assignment.port, allow_grpc=False, allow_metrics=False, log_verbose=0
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=[Instance() for _ in range(assignment.processes)],
            inputs=[Tensor(name="body", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
            strict=False,
        )
        triton.serve()
