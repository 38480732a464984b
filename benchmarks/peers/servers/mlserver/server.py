"""MLServer: a worker per core, and its adaptive batching."""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.workload import MAX_BATCH, MAX_DELAY_S, read_assignment


class Model(MLModel):
    """Answers a batch: the elements of a BYTES tensor."""

    async def load(self) -> bool:
        """Load the model, in each worker."""
        self.workload = read_assignment().load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return a JSON text for each element."""
        tensor = payload.inputs[0]
        if tensor.parameters and tensor.parameters.content_type == "base64":
            bodies = Base64Codec.decode_input(tensor)
        else:
            bodies = [text.encode() for text in StringCodec.decode_input(tensor)]
        answers = await asyncio.to_thread(self.workload.answer_batch, bodies)
        output = StringCodec.encode_output("answer", [answer.decode() for answer in answers])
        return InferenceResponse(model_name=self.name, outputs=[output])


if __name__ == "__main__":
    assignment = read_assignment()
    folder = Path(tempfile.mkdtemp(prefix="mlserver-"))
    settings = {
        "host": "127.0.0.1",
        "http_port": assignment.port,
        "grpc_port": 0,
        "metrics_endpoint": None,
        "parallel_workers": assignment.processes,
        "debug": False,
    }
    model = {
        "name": "model",
        "implementation": "server.Model",
        "max_batch_size": MAX_BATCH,
        "max_batch_time": MAX_DELAY_S,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    program = Path(sys.executable).with_name("mlserver")
    os.execv(program, [str(program), "start", str(folder)])  # noqa: S606
