"""The contract between a task, its trainer and its client.

The line a request walks, and whose word each step is:

    body → parse → request → decode → raw → preprocess → samples → [batch → graph] → outputs → postprocess → answer
           tasks             tasks          tasks                   service  training           tasks

Tensor arithmetic (cast, normalise, soft-max, arg-max) is in the exported graph. Everything else about a task is here,
written once: training calls `preprocess` on its data set, the service on what clients send.

This package knows nothing of networks, of HTTP and of the runtime; it imports no torch, onnxruntime or fastapi.
"""

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PlainSerializer, TypeAdapter, WithJsonSchema
from pydantic_core import from_json

from tasks.comparison import agreement

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Run = Callable[[Arrays], Arrays]
"""Runs the graph: named inputs to named outputs, each with the batch axis first."""

_MAX_FIELDS = 100
"""Fields of a request: to name each unknown one of half a million would take seconds."""

ElementKind = Literal["value", "class", "pixel"]
"""What an element of a tensor says: a quantity, a class by its index, or the brightness of a pixel, 0…255."""

Reason = Literal["empty", "unreadable", "too_large", "unsupported", "invalid"]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a request: where (`rows.3.age`), what kind, and a sentence that says what to do."""

    where: str
    reason: str
    message: str


class InvalidInput(ValueError):
    """What was sent cannot be answered; the sender can mend it. The message is safe to show."""

    def __init__(self, message: str, *, reason: Reason = "invalid", problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.problems = problems


class InvalidOutput(ArithmeticError):
    """The graph answered with something that is no answer (a NaN, a wrong shape) for this sample."""


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for.

    Attributes:
        pixels: of a picture that is sent.
        rows: of a table that is sent.
        answer_pixels: of a picture that the network makes, pixel by pixel.
        characters: of a text that is sent.
    """

    pixels: int = 25_000_000
    rows: int = 1_000
    answer_pixels: int = 4_000_000
    characters: int = 100_000


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the graph: its name, its numpy dtype and its shape without the batch axis.

    A string in the shape names an axis whose length the sample decides. `kind` says how two such tensors are
    compared: numbers by their distance, indices by how many differ, levels by how far they do.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    kind: ElementKind = "value"

    def mismatch(self, array: Array) -> str | None:
        """Why `array`, batch axis first, is not this tensor; None where it is."""
        if array.dtype != np.dtype(self.dtype):
            return f"{self.name} is {array.dtype}, not {self.dtype}"
        wanted, got = self.shape, array.shape[1:]
        fits = len(wanted) == len(got) and all(isinstance(w, str) or w == g for w, g in zip(wanted, got, strict=True))
        return None if fits else f"{self.name} has shape (n, {', '.join(map(str, got))}), not (n, {wanted})"


@dataclass(frozen=True)
class Samples:
    """The pre-processed samples of one request, stacked: `arrays[name]` is (n, *shape).

    Most requests are one sample; a table is as many as it has rows, a large picture as many as it has tiles. All
    samples of a request have one shape. `context` is whatever `postprocess` needs beside the outputs (a Frame, say).
    `size_of_answer` is what the cost of `postprocess` grows with where that is not the number of samples: the pixels of
    a mask, say, which is as large as the picture.
    """

    arrays: Arrays
    context: Any = None
    size_of_answer: int = 0

    @property
    def work(self) -> int:
        """What `postprocess` has to go over: samples, or more where the task says so."""
        return self.size_of_answer or len(self)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


@dataclass(frozen=True)
class Upload:
    """The field of the request that a raw body or an uploaded file fills, and the media types it may have."""

    field: str
    media_types: tuple[str, ...]


@dataclass(frozen=True)
class Representation:
    """A form that an answer can have; a client chooses it by `Accept`.

        Form("application/json")                                        the answer as it is
        Form("application/json;mask=rle", {"mask": "rle"})              the same, with the mask in another shape
        Form("image/png", {"mask": "png"}, file="mask_png")             a file: what the answer's field holds

    Attributes:
        media_type: with its parameters, if it has any.
        fields: what the request's fields are set to when this form is chosen.
        file: the field of the answer (dots lead into it) whose bytes are the body; None: the whole answer as JSON.
    """

    media_type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None


FileBytes = Annotated[
    bytes,
    PlainSerializer(lambda content: base64.b64encode(content).decode("ascii"), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}, mode="serialization"),
]
"""An answer's field that is a file; base64 in JSON."""


class Request(BaseModel):
    """What a client sends; unknown fields are refused, so that a misspelt option is not silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(BaseModel):
    """What a client gets; the service fills in which model answered."""

    model_config = ConfigDict(extra="forbid")

    model: str = ""
    version: str = ""

    def plain(self) -> dict[str, Any]:
        """The answer as JSON values, without what is None and without which model gave it: what goldens record."""
        return self.model_dump(mode="json", exclude={"model", "version"}, exclude_none=True)


@dataclass(frozen=True)
class Task(ABC):
    """One of the questions, with all it has learnt from its data as fields.

    The fields are exactly what a manifest records as `parameters`: plain values, tuples and frozen dataclasses. Large
    ones (a tokenizer, a table of films) lie in files of their own, which `files` names.
    A task is pure: no method changes it, reads a file or keeps anything between two calls, and each may be called
    from several threads at once.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    upload: ClassVar[Upload | None] = None
    representations: ClassVar[tuple[Representation, ...]] = (Representation("application/json"),)
    """The forms that answers can have; the first is the one for whoever has no preference."""
    files: ClassVar[Mapping[str, str]] = {}
    """Fields that lie in a file of the model's folder and not in its manifest: {field: file name}.

    A field annotated as `str` is that text, in UTF-8; any other is JSON.
    """
    compared_fields: ClassVar[tuple[str, ...]] = ()
    """The fields of an answer that two versions of a model are compared by; none: all of them."""
    decoding_releases_gil: ClassVar[bool] = False
    """Whether `decode` and `preprocess` spend their time in C code that releases the interpreter's lock, so that
    threads decode in parallel."""
    golden_tolerance: ClassVar[float] = 2e-3
    """How far a number of an answer may lie from the golden one: other processors round otherwise, no more."""

    @property
    @abstractmethod
    def request_type(self) -> type[Request]:
        """The request's model; a property since it may depend on what was learnt (a table's columns)."""

    @property
    @abstractmethod
    def answer_type(self) -> type[Answer]:
        """The answer's model."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs, in order."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs, in order."""

    @property
    def length_buckets(self) -> Mapping[str, tuple[int, ...]]:
        """The lengths that `preprocess` fills samples up to, by the name of the axis in `inputs`: the buckets."""
        return {}

    @abstractmethod
    def decode(self, request: Any, limits: Limits) -> Any:
        """The raw thing that a request holds: a picture, a text, a table. Raises InvalidInput."""

    @abstractmethod
    def preprocess(self, raw: Any) -> Samples:
        """Samples for the graph, shaped as `inputs` says. Training calls it too, after augmentation."""

    @abstractmethod
    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> Answer:
        """The answer to `request` from the outputs of its samples (batch axis first, in their order)."""

    @abstractmethod
    def example(self) -> dict[str, Any]:
        """A request body (JSON) that this task answers: for the documentation, warm-up and load tests."""

    def examples(self) -> list[dict[str, Any]]:
        """Request bodies that between them use each switch of the request, the plainest first.

        They are the golden requests of a model whose data may not be passed on.
        """
        return [self.example()]

    def parse(self, body: Any, limits: Limits) -> Request:
        """The request in a JSON body. Raises pydantic.ValidationError, InvalidInput.

        `limits` is the validators' context.
        """
        if isinstance(body, dict) and len(body) > _MAX_FIELDS:
            raise InvalidInput(f"The request has {len(body):,} fields; none has more than {_MAX_FIELDS}.")
        return self.request_type.model_validate(body, context=limits)

    def agreement(self, ours: Any, theirs: Any) -> float:
        """How far two answers to one request agree, 0…1: those of two versions of a model.

        Decisions (labels, ids, truth values) are equal or not, numbers close or not (`tasks/comparison.py`). An answer
        that is a picture, a mask, points or a ranking is measured by its task.
        """
        one, other = ours.plain(), theirs.plain()
        if self.compared_fields:
            one, other = (
                {name: answer[name] for name in self.compared_fields if name in answer} for answer in (one, other)
            )
        return agreement(one, other)

    def answer(self, run: Run, body: Any, limits: Limits | None = None) -> Answer:
        """The whole line for one body, alone: how goldens are made and replayed, and what a test compares with."""
        limits = limits or Limits()
        request = self.parse(body, limits)
        samples = self.preprocess(self.decode(request, limits))
        return self.postprocess(run(samples.arrays), samples, request)


def parameters_of(task: Task) -> dict[str, Any]:
    """A task's fields as plain JSON values, without those that lie in files."""
    parameters: dict[str, Any] = TypeAdapter(type(task)).dump_python(task, mode="json", exclude=set(task.files))
    return parameters


def files_of(task: Task) -> dict[str, str]:
    """The fields that lie in files, as the text of each: by the file's name."""
    if not task.files:
        return {}
    values = TypeAdapter(type(task)).dump_python(task, mode="json", include=set(task.files))
    return {
        name: values[field] if _is_text(type(task), field) else json.dumps(values[field], ensure_ascii=False) + "\n"
        for field, name in task.files.items()
    }


def task_from(task_class: type[Task], parameters: Mapping[str, Any], files: Mapping[str, str] | None = None) -> Task:
    """The task that `parameters_of` and `files_of` described.

    Raises ValueError where a file is missing or not JSON, and pydantic.ValidationError (which is one) where a field
    does not fit.
    """
    found = files or {}
    if missing := sorted(set(task_class.files.values()) - set(found)):
        raise ValueError(f"it also needs {', '.join(missing)}")
    fields = {
        field: found[name] if _is_text(task_class, field) else _parsed(found[name], name)
        for field, name in task_class.files.items()
    }
    return TypeAdapter(task_class).validate_python({**parameters, **fields})


def _is_text(task_class: type[Task], field: str) -> bool:
    return get_type_hints(task_class)[field] is str


def _parsed(text: str, name: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
