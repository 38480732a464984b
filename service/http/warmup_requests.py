"""Send each model a request of each kind before clients do, so that no client waits for first-time initialisation.

The requests take the whole path except the socket. What they measure, such as the cost of decoding, decides in which
thread the steps of later requests run. They are not counted in metrics.
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
from service.models.model import Model

_LOG = logging.getLogger(__name__)
_REPEAT_BELOW_S = 0.05
"""Requests faster than this are sent twice: the second one measures the steps without first-time costs."""


async def send_warmup_requests(predict_app: ASGIApp, models: list[Model]) -> None:
    """Send each model its example, as JSON and, if it accepts uploads, as a file. Failures are only logged."""
    for model in models:
        if model.pipeline.has_batch_delay:
            continue  # A single request would wait for the whole delay.
        model.pipeline.records_batch_sizes = False
        for content_type, body in _bodies(model):
            started_at = time.perf_counter()
            await _send(predict_app, model, content_type, body)
            if time.perf_counter() - started_at < _REPEAT_BELOW_S:
                await _send(predict_app, model, content_type, body)
        model.pipeline.records_batch_sizes = True


def _bodies(model: Model) -> Iterator[tuple[str, bytes]]:
    example, upload = dict(model.example), model.task.upload
    yield "application/json", json.dumps(example).encode()
    content = example.get(upload.field) if upload else None
    if upload and isinstance(content, str):
        media_type = upload.media_types[0]
        yield media_type, content.encode() if media_type.startswith("text/") else base64.b64decode(content)


async def _send(predict_app: ASGIApp, model: Model, content_type: str, body: bytes) -> None:
    fields: dict[str, Any] = {"model": model.manifest.name}
    try:
        status = await _post(predict_app, _scope(model, content_type, body), body)
    except Exception:  # A client would get an error response; the model may still answer other requests.
        _LOG.exception("warm-up request failed", extra={"fields": fields})
    else:
        if status != 200:
            _LOG.error("warm-up request was rejected", extra={"fields": fields | {"status": status}})


async def _post(predict_app: ASGIApp, scope: Scope, body: bytes) -> int:
    received = False
    status = 0

    async def receive() -> Message:
        nonlocal received
        if received:
            await asyncio.Event().wait()  # This client never disconnects.
        received = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    await predict_app(scope, receive, send)
    return status


def _scope(model: Model, content_type: str, body: bytes) -> Scope:
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
        "headers": [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
        "sevenfold.trace": Trace("warm-up", time.perf_counter()),
    }
