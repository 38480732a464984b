"""FastAPI as most people write it: an endpoint that runs the model in the pool of threads, in one or more processes."""

from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from benchmarks.peers.workload import read_assignment


def create_app() -> FastAPI:
    """Return the application; every process loads the model."""
    workload = read_assignment().load()
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> Any:
        body = await request.body()
        return Response(await run_in_threadpool(workload.answer, body), media_type="application/json")

    return app


if __name__ == "__main__":
    assignment = read_assignment()
    uvicorn.run(
        "server:create_app",
        factory=True,
        host="127.0.0.1",
        port=assignment.port,
        workers=assignment.processes,
        log_level="warning",
        access_log=False,
    )
