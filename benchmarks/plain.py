"""The endpoint to compare with: FastAPI, one ONNX Runtime session, no queue and no batching.

It calls the same task code and the same ONNX Runtime, which uses all cores for each run, in FastAPI's thread pool.
"""

import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from service.backends.onnx import OnnxRuntime
from tasks.contract import Limits
from tasks.manifest import MODEL, read_manifest


def plain_app(folder: Path) -> FastAPI:
    """Return an application with POST /predict for the model in this folder."""
    task = read_manifest(folder).load_task(folder)
    backend = OnnxRuntime(device="cpu")((folder / MODEL).read_bytes(), task.inputs, task.outputs)
    app = FastAPI()

    def answer(request: Any) -> Any:
        samples = task.preprocess(task.decode(request, Limits()))
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
    uvicorn.run(plain_app(Path(sys.argv[1])), port=int(sys.argv[2]), log_level="warning", access_log=False)
