"""What goes through a pipeline: what a client sent, where its request is, and what comes back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.admission import Wishes
from tasks.contract import Answer


@dataclass(frozen=True)
class Message:
    """What a client sent, still in bytes: `fields` makes the request's fields of it and may raise ServiceError.

    `render` makes the bytes of the answer that the client wants. `wishes` are those that are known already; where
    `may_wish`, there may be more among the fields.
    """

    kind: str
    size: int
    fields: Callable[[], Mapping[str, Any]]
    render: Callable[[Answer], bytes] = lambda answer: answer.model_dump_json(exclude_none=True).encode()
    wishes: Wishes = Wishes()
    may_wish: bool = False


@dataclass
class Progress:
    """Where a request is, for whoever asks when its client has gone; and how its time limit is changed."""

    stage: str = "receive"
    limit_to: Callable[[float], None] = lambda until: None

    def at(self, stage: str) -> Callable[[], None]:
        """A function that says that it has come there."""

        def arrive() -> None:
            self.stage = stage

        return arrive


@dataclass(frozen=True)
class Answered:
    """An answer's bytes, and the seconds that each stage took."""

    body: bytes
    stages: Mapping[str, float]
    batch_size: int
