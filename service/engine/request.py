"""What goes through a pipeline: what a client sent, where its request is, and what comes back."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.engine.admission import RequestOptions
from service.engine.batcher import BatchResult
from service.metrics import NO_MODEL
from tasks.contract import Answer, Request, Samples


@dataclass(frozen=True)
class PredictRequest:
    """What a client sent, still in bytes: `fields` makes the request's fields of it and may raise ServiceError.

    `render` makes the bytes of the answer that the client wants. `options` are those that are known already; there may
    be more among the fields.
    """

    kind: str
    size: int
    fields: Callable[[], Mapping[str, Any]]
    render: Callable[[Answer], bytes] = lambda answer: answer.model_dump_json(exclude_none=True).encode()
    options: RequestOptions = RequestOptions()


@dataclass
class RequestState:
    """Where a request is, for whoever asks when its client has gone; and how its time limit is changed."""

    stage: str = "receive"
    came: float = 0.0
    """When it came: the event loop's time."""
    is_large: bool = False
    """Whether it is more than one batch: how long it takes says nothing of others."""
    limit_to: Callable[[float], None] = lambda until: None

    def at(self, stage: str) -> Callable[[], None]:
        """A function that says that it has come there."""

        def arrive() -> None:
            self.stage = stage

        return arrive


@dataclass(frozen=True)
class PredictResult:
    """An answer's bytes, and the seconds that each stage took."""

    body: bytes
    stages: Mapping[str, float]
    batch_size: int


@dataclass(frozen=True)
class PreparedRequest:
    """What a message was read as, and when that had been done; how long it had waited until then."""

    request: Request
    samples: Samples
    options: RequestOptions
    ended: float
    waited_s: float = 0.0


def predict_result(
    body: bytes, ran: BatchResult, began: float, read: float, finished: float, *, waited_s: float = 0.0
) -> PredictResult:
    """The answer with the seconds of each stage; what is none of the others is waiting."""
    stages = {
        "decode": read - began - waited_s,
        "queue": waited_s + max(0.0, finished - read - ran.ran_s),
        "infer": ran.ran_s,
        "postprocess": time.perf_counter() - finished,
    }
    return PredictResult(body, stages, ran.batch_size)


@dataclass
class Trace:
    """What is known of a request while it is answered."""

    request_id: str
    began: float
    model: str = NO_MODEL
    version: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    batch_size: int = 0
    code: str = ""
    status: int = 0
    mirror: Any = None
    """What is to be done once the client has its answer (`service/models/shadow.py`)."""
