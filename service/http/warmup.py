"""A request of each kind to each model before any client's, so that what a first one sets up is there by then.

It goes the whole way but the socket: what is found out on it, such as what decoding costs, decides where the steps of
the next ones run. No metric counts it.
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from service.engine.request import Trace
from service.models.repository import Model

_LOG = logging.getLogger(__name__)
_QUICK_S = 0.05
"""Only who is quicker is asked a second time, which finds out what steps take that have been done before."""


async def send_warmup_requests(predictions: ASGIApp, models: list[Model]) -> None:
    """Asks each model its example, as JSON and as a file where it takes one. What fails is logged, and no more."""
    for model in models:
        if model.pipeline.has_batch_delay:
            continue  # There is none.
        model.pipeline.records_batch_sizes = False
        for kind, body in _bodies(model):
            began = time.perf_counter()
            await _try(predictions, model, kind, body)
            if time.perf_counter() - began < _QUICK_S:
                await _try(predictions, model, kind, body)
        model.pipeline.records_batch_sizes = True


async def _try(predictions: ASGIApp, model: Model, kind: str, body: bytes) -> None:
    try:
        await _ask(predictions, model, kind, body)
    except Exception:  # A client would be told; the model may well answer other requests.
        _LOG.exception("rehearsal failed", extra={"fields": {"model": model.manifest.name}})


def _bodies(model: Model) -> Iterator[tuple[str, bytes]]:
    example, upload = dict(model.example), model.task.upload
    yield "application/json", json.dumps(example).encode()
    content = example.get(upload.field) if upload else None
    if upload and isinstance(content, str):
        kind = upload.media_types[0]
        yield kind, content.encode() if kind.startswith("text/") else base64.b64decode(content)


async def _ask(predictions: ASGIApp, model: Model, kind: str, body: bytes) -> None:
    received = False
    status = 0

    async def receive() -> Message:
        nonlocal received
        if received:
            await asyncio.Event().wait()  # This client does not hang up.
        received = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    await predictions(_scope(model, kind, body), receive, send)
    if status != 200:
        fields: dict[str, Any] = {"model": model.manifest.name, "status": status}
        _LOG.error("the example was not answered", extra={"fields": fields})


def _scope(model: Model, kind: str, body: bytes) -> Scope:
    manifest = model.manifest
    path = f"/v1/models/{manifest.name}/versions/{manifest.version}/predict"
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
        "sevenfold.trace": Trace("rehearsal", time.perf_counter()),
    }
