"""A task whose inputs do what hostile files do to a decoder. Worker processes import it."""

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from tasks.contract import Answer, Arrays, InvalidInput, Limits, Request, Samples, Task, TensorSpec, Upload


class OrderRequest(Request):
    order: str
    top: int = 1


class OrderAnswer(Answer):
    value: float


def spin() -> None:
    """Match a regular expression that backtracks for ages, in C, without ever releasing the interpreter's lock."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def use_memory() -> None:
    """Allocate and free memory so that the allocator keeps it: below a piece that is still in use."""
    pieces = [bytearray(40_000) for _ in range(1_000)]
    KEPT.append(bytearray(40_000))
    pieces.clear()


KEPT: list[bytearray] = []


@dataclass(frozen=True)
class Hostile(Task):
    """Obeys the order in the upload."""

    request_type = OrderRequest
    answer_type = OrderAnswer
    upload: ClassVar[Upload | None] = Upload("order", ("text/plain",))
    decodes_files: ClassVar[bool] = True

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec("value", "float32", (1,)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.inputs

    def decode(self, request: Any, limits: Limits) -> str:
        orders: Mapping[str, Any] = {
            "spin": spin,
            "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "be killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "abort": os.abort,
            "allocate 200 MB": lambda: bytearray(200_000_000),
            "allocate": lambda: bytearray(10**11),
            "divide": lambda: 1 // 0,
            "use 40 MB in small pieces": use_memory,
        }
        if request.order == "refuse":
            raise InvalidInput("This order is refused.", reason="unreadable")
        orders.get(request.order, lambda: None)()
        return str(request.order)

    def preprocess(self, raw: str) -> Samples:
        image = Image.new("RGB", (3, 2), (1, 2, 3))
        return Samples({"value": np.array([[len(raw)]], np.float32)}, (image, os.getpid()))

    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> OrderAnswer:
        return OrderAnswer(value=float(outputs["value"][0, 0]))

    def example(self) -> dict[str, Any]:
        return {"order": "wait"}
