"""What a pipeline receives, keeps track of and returns for one request.

    PredictRequest → Preparation (`service/engine/preparation.py`) → PredictResult

`RequestState` and `Trace` accompany the request: the state tells the caller how far it has come, the trace collects
what is logged and measured. Nothing here knows HTTP.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.engine.admission import RequestOptions
from service.engine.batcher import BatchResult
from service.metrics import NO_MODEL
from service.tracing.spans import RequestSpan
from tasks.contract import Answer

Body = bytes | bytearray
Parse = Callable[[Body], Mapping[str, Any]]
"""Returns the fields of a request from its body."""


def render_json(answer: Answer) -> bytes:
    """Return an answer as JSON."""
    return answer.model_dump_json(exclude_none=True).encode()


@dataclass(frozen=True)
class PredictRequest:
    """A request as the client sent it, not yet parsed.

    Attributes:
        body_format: json, form or upload. The cost of decoding is measured for each format.
        body: the bytes of the body.
        parse: returns the fields of the request from its body; may raise ServiceError. It can be pickled.
        is_compressed: whether the body is compressed, so that its size says nothing about the cost of reading it.
        render: returns the bytes of an answer, in the representation that the client wants. It can be pickled, unless
            `keeps_answer` is set.
        keeps_answer: whether `render` has an effect in this process, so that it must be called here.
        options: the options known so far; `parse` may return more of them.
    """

    body_format: str
    body: Body
    parse: Parse
    is_compressed: bool = False
    render: Callable[[Answer], bytes] = render_json
    keeps_answer: bool = False
    options: RequestOptions = RequestOptions()

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.body)


@dataclass
class RequestState:
    """How far a request has come; updated by the pipeline, read by the caller.

    Attributes:
        stage: receive, decode, queue, infer or finish; reported if the client disconnects.
        arrived_at: the event loop's time.
        is_unusual: whether it has more samples than the device runs at a time, several inputs, or a file that takes
            long to decode, so that its duration says nothing about other requests.
        prepare_wait_s: seconds that it waited for a thread that prepares it.
        set_time_limit: changes the caller's timeout to this time of the event loop.
        span: of the request, if it is recorded.
        hold: counts bytes that the request keeps in memory until it is answered. Raises Overloaded.
    """

    stage: str = "receive"
    arrived_at: float = 0.0
    is_unusual: bool = False
    prepare_wait_s: float = 0.0
    set_time_limit: Callable[[float], None] = lambda limit: None
    span: RequestSpan | None = None
    hold: Callable[[int], None] = lambda size: None

    def stage_setter(self, stage: str) -> Callable[[], None]:
        """Return a callback that sets the stage."""

        def set_stage() -> None:
            self.stage = stage

        return set_stage


@dataclass(frozen=True)
class PredictResult:
    """The bytes of an answer, the seconds that each stage took, and the size of the largest batch.

    `failed` holds the error code of each input of a list that could not be answered.
    `is_list` says whether the body has an answer for each of several inputs.
    """

    body: bytes
    stages: Mapping[str, float]
    batch_size: int
    failed: tuple[str, ...] = ()
    is_list: bool = False


def make_result(
    body: bytes,
    result: BatchResult,
    *,
    started_at: float,
    prepared_at: float,
    prepare_wait_s: float,
    inferred_at: float,
) -> PredictResult:
    """Return the result with the seconds of each stage; time that belongs to no other stage counts as queueing.

    `started_at` is when the pipeline received the request, `prepared_at` when it was decoded, `inferred_at` when the
    outputs of all samples were there; all by `time.perf_counter`. Post-processing ends now. `prepare_wait_s` is how
    long the request waited before it was decoded.
    """
    stages = {
        "decode": max(0.0, prepared_at - started_at - prepare_wait_s),
        "queue": prepare_wait_s + max(0.0, inferred_at - prepared_at - result.run_s),
        "infer": result.run_s,
        "postprocess": time.perf_counter() - inferred_at,
    }
    return PredictResult(body, stages, result.batch_size)


@dataclass
class Trace:
    """What is known about a request while it is answered, for the log, the metrics and the response headers."""

    request_id: str
    started_at: float
    model: str = NO_MODEL
    version: str = NO_MODEL
    key: str = ""
    """The name of the client's API key."""
    stages: dict[str, float] = field(default_factory=dict)
    batch_size: int = 0
    request_bytes: int = -1
    """Size of the body; -1 if it was not received whole."""
    response_bytes: int = -1
    """Size of the body of the answer; -1 if there is none."""
    code: str = ""
    failed_inputs: tuple[str, ...] = ()
    """The error codes of the inputs of a list that could not be answered, though the request was."""
    error: BaseException | None = None
    """The exception behind the error code."""
    status: int = 0
    route: str = ""
    """The path of the endpoint, with the names of its parameters; empty if FastAPI knows it."""
    span: RequestSpan | None = None
    """Of the request, if it is recorded."""
    traceresponse: str = ""
    """The response header that names the span; empty without tracing."""
    mirror: Any = None
    """What `service/models/shadow_traffic.py` does with the request once the client has its answer."""
