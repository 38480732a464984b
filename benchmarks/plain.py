"""The endpoint to compare with: FastAPI, one ONNX Runtime session, no queue and no batching.

It calls the same task code and the same ONNX Runtime, which uses all cores for each run, in FastAPI's thread pool. With
`--full-size` it reads images as an endpoint would that is written in an afternoon: Pillow decodes all of the image, and
scales it to the network's square.
"""

import io
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image, ImageOps

from service.backends.onnx import OnnxRuntime
from tasks._images import DecodedImage
from tasks.contract import Limits
from tasks.manifest import MODEL, read_manifest


def decode_at_full_size(content: bytes, width: int, height: int) -> DecodedImage:
    """Decode an image without the task's code: all of it, upright, to RGB, stretched to this size."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    return DecodedImage(image.resize((width, height), Image.Resampling.BILINEAR), image.width, image.height)


def plain_app(folder: Path, *, full_size: bool = False) -> FastAPI:
    """Return an application with POST /predict for the model in this folder.

    `full_size` is for a model that stretches images to its input, uint8 (height, width, 3).
    """
    task = read_manifest(folder).load_task(folder)
    backend = OnnxRuntime(device="cpu")((folder / MODEL).read_bytes(), task.inputs, task.outputs)
    height, width = map(int, task.inputs[0].shape[:2]) if full_size else (0, 0)
    app = FastAPI()

    def answer(request: Any) -> Any:
        raw = decode_at_full_size(request.image, width, height) if full_size else task.decode(request, Limits())
        samples = task.preprocess(raw)
        return task.postprocess(backend.run_exclusive(samples.arrays), samples, request)

    if task.upload is None or not isinstance(task.example()[task.upload.field], str):

        @app.post("/predict")
        def predict(request: task.request_type) -> task.answer_type:  # type: ignore[name-defined]
            return answer(request)

    else:
        field = task.upload.field

        @app.post("/predict")
        async def predict_upload(request: Request) -> task.answer_type:  # type: ignore[name-defined]
            body = await request.body()
            return await run_in_threadpool(lambda: answer(task.parse({field: body}, Limits())))

    return app


if __name__ == "__main__":
    app = plain_app(Path(sys.argv[1]), full_size="--full-size" in sys.argv)
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", access_log=False)
