"""The contract of a task: the interface that training and the service share.

The steps of a request, and the package that implements each step:

    body → parse → request → decode → raw → preprocess → samples → [batch → graph] → outputs → postprocess → answer
           tasks             tasks          tasks                   service  training           tasks

Tensor arithmetic (cast, normalise, soft-max, arg-max) is part of the exported graph. Everything else about a task is
implemented once, here: training calls `preprocess` on its data set, and the service calls it on what clients send.

This package does not depend on networks, HTTP or the runtime; it imports no torch, onnxruntime or fastapi.
"""

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PlainSerializer, TypeAdapter, WithJsonSchema

from tasks._json import parse_json
from tasks.comparison import agreement

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Run = Callable[[Arrays], Arrays]
"""A function that runs the graph: named inputs to named outputs, all with the batch axis first."""


def count_samples(arrays: Arrays) -> int:
    """Return the number of samples in named arrays, which is the length of the batch axis."""
    return len(next(iter(arrays.values())))


def split_outputs(outputs: Arrays, sizes: Sequence[int]) -> list[Arrays]:
    """Return the outputs of each request, as views, from those of a batch of requests with so many samples each."""
    if len(sizes) == 1:
        return [outputs]
    parts: list[Arrays] = []
    start = 0
    for size in sizes:
        parts.append({name: array[start : start + size] for name, array in outputs.items()})
        start += size
    return parts


_MAX_FIELDS = 100
"""Maximum number of fields in a request. Reporting half a million unknown fields one by one would take seconds."""

_MAX_JSON_VALUES = 10_000

ElementKind = Literal["value", "class", "pixel"]
"""What an element of a tensor is: a quantity, the index of a class, or the brightness of a pixel, 0…255."""

Reason = Literal["empty", "unreadable", "too_large", "unsupported", "invalid"]


@dataclass(frozen=True)
class Problem:
    """A problem in a request: its location (`rows.3.age`), a reason code, and a message that says what to do."""

    where: str
    reason: str
    message: str


class InvalidInput(ValueError):
    """The request cannot be answered, and the client can correct it. The message is safe to show."""

    def __init__(self, message: str, *, reason: Reason = "invalid", problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.problems = problems


class InvalidOutput(ArithmeticError):
    """The graph's outputs for this sample are unusable: NaN, say, or a wrong shape."""


@dataclass(frozen=True)
class Limits:
    """Upper limits for one request.

    Attributes:
        pixels: pixels of an image in the request.
        rows: rows of a table in the request.
        answer_pixels: pixels of an image that the network generates.
        characters: characters of a text in the request.
        inputs: images or texts in one request.
    """

    pixels: int = 50_000_000
    rows: int = 1_000
    answer_pixels: int = 4_000_000
    characters: int = 100_000
    inputs: int = 16


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the graph: its name, its numpy dtype and its shape without the batch axis.

    A string in the shape names an axis of variable length. `kind` decides how two such tensors are compared: values
    and pixels by their distance, classes by the fraction that differs.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    kind: ElementKind = "value"

    def mismatch(self, array: Array) -> str | None:
        """Return why `array` (batch axis first) does not match this spec, or None if it does."""
        if array.dtype != np.dtype(self.dtype):
            return f"{self.name} is {array.dtype}, not {self.dtype}"
        expected, actual = self.shape, array.shape[1:]
        matches = len(expected) == len(actual) and all(
            isinstance(length, str) or length == actual_length
            for length, actual_length in zip(expected, actual, strict=True)
        )
        return None if matches else f"{self.name} has shape (n, {', '.join(map(str, actual))}), not (n, {expected})"


@dataclass(frozen=True)
class Samples:
    """The pre-processed samples of one request, stacked: `arrays[name]` is (n, *shape).

    Most requests have one sample; a table has one per row, and a large image has one per tile. All samples of a
    request have the same shape.

    Attributes:
        arrays: the inputs of the graph by name.
        context: what `postprocess` needs besides the outputs (a Frame, for example).
        answer_size: the quantity that the cost of `postprocess` grows with, if it is not the number of samples: for
            a mask, its number of pixels.
    """

    arrays: Arrays
    context: Any = None
    answer_size: int = 0

    @property
    def work(self) -> int:
        """The amount of work for `postprocess`: `answer_size` if the task sets it, else the number of samples."""
        return self.answer_size or len(self)

    def __len__(self) -> int:
        return count_samples(self.arrays)


@dataclass(frozen=True)
class Upload:
    """The request field that is filled by a raw body or an uploaded file.

    Attributes:
        field: the name of the field.
        media_types: the types that are documented.
        several: whether a request may have a list of them instead, each of which is answered for itself.
        has_signature: whether decoding tells by the content if it is what the task reads, so that a wrong subtype
            (`image/jpg`) does no harm. A text has no signature: HTML and CSV would be read as prose.
    """

    field: str
    media_types: tuple[str, ...]
    several: bool = True
    has_signature: bool = False

    def accepts(self, media_type: str) -> bool:
        """Return whether content that is declared to be of this type can fill the field."""
        if media_type in (*self.media_types, "application/octet-stream"):
            return True
        kinds = {accepted.partition("/")[0] for accepted in self.media_types}
        return self.has_signature and media_type.partition("/")[0] in kinds


@dataclass(frozen=True)
class Representation:
    """A representation of an answer, which the client selects with `Accept`.

        Representation("application/json")                                  the answer as it is
        Representation("application/json;mask=rle", {"mask": "rle"})        the same, with the mask as run lengths
        Representation("image/png", {"mask": "png"}, file="mask_png")       a file: the content of a field of the answer

    Attributes:
        media_type: the media type with its parameters, if any.
        fields: the values that selecting this representation gives to fields of the request.
        file: the field of the answer, as a dotted path, whose bytes become the body; None for the whole answer as JSON.
    """

    media_type: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None


FileBytes = Annotated[
    bytes,
    PlainSerializer(lambda content: base64.b64encode(content).decode("ascii"), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}, mode="serialization"),
]
"""A field of an answer that holds a file; base64 in JSON."""


class Request(BaseModel):
    """A client's request. Unknown fields are rejected, so that a misspelt option is not silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(BaseModel):
    """The answer to a client; the service fills in the model and its version."""

    model_config = ConfigDict(extra="forbid")

    model: str = ""
    version: str = ""

    def plain(self) -> dict[str, Any]:
        """The answer as JSON values, without None values, the model and its version, as recorded in goldens."""
        return self.model_dump(mode="json", exclude={"model", "version"}, exclude_none=True)


@dataclass(frozen=True)
class Task(ABC):
    """A task; its fields hold everything that was learnt from the data.

    The fields are exactly what a manifest records as `parameters`: plain values, tuples and frozen dataclasses. Large
    fields (a tokenizer, a table of films) are stored in separate files, listed in `files`.
    A task is pure: no method changes it, reads a file or keeps state between calls, and all methods are thread-safe.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    upload: ClassVar[Upload | None] = None
    representations: ClassVar[tuple[Representation, ...]] = (Representation("application/json"),)
    """The representations of an answer; the first is the default."""
    files: ClassVar[Mapping[str, str]] = {}
    """Fields that are stored in a file of the model's folder and not in its manifest: {field: file name}.

    A field annotated as `str` is stored as UTF-8 text; any other field is stored as JSON.
    """
    compared_fields: ClassVar[tuple[str, ...]] = ()
    """The fields of an answer by which two versions of a model are compared; empty for all fields."""
    decodes_files: ClassVar[bool] = False
    """Whether a request holds a file whose size does not predict the cost of decoding it (a compressed image)."""
    golden_tolerance: ClassVar[float] = 2e-3
    """How far a number may differ from the golden answer; enough for the rounding of other processors."""

    @property
    @abstractmethod
    def request_type(self) -> type[Request]:
        """The request's pydantic model; a property because it may depend on what was learnt (a table's columns)."""

    @property
    @abstractmethod
    def answer_type(self) -> type[Answer]:
        """The answer's pydantic model."""

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
        """The lengths to which `preprocess` pads samples, by the name of the axis in `inputs`."""
        return {}

    def max_json_values(self, limits: Limits) -> int:
        """Return how many values, of all levels, the JSON of a valid request may contain. More are refused unparsed."""
        return _MAX_JSON_VALUES

    @abstractmethod
    def decode(self, request: Any, limits: Limits) -> Any:
        """Return the raw content of a request: an image, a text, a table. Raises InvalidInput."""

    @abstractmethod
    def preprocess(self, raw: Any) -> Samples:
        """Return samples for the graph, shaped as `inputs` specifies. Training calls this after augmentation."""

    @abstractmethod
    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> Answer:
        """Return the answer to `request` from the outputs of its samples (batch axis first, in the same order)."""

    def preprocess_many(self, raws: Sequence[Any]) -> Sequence[Samples]:
        """Return what `preprocess` returns for each of several requests.

        A task overrides this if most of the cost of a request is that of calls, which many requests can share.
        """
        return [self.preprocess(raw) for raw in raws]

    def postprocess_many(
        self, outputs: Arrays, samples: Sequence[Samples], requests: Sequence[Any]
    ) -> Sequence[Answer]:
        """Return what `postprocess` returns for each of several requests; `outputs` are those of all samples in order.

        Raises what `postprocess` raises for any of them.
        """
        parts = split_outputs(outputs, [len(item) for item in samples])
        return [self.postprocess(*request) for request in zip(parts, samples, requests, strict=True)]

    @abstractmethod
    def example(self) -> dict[str, Any]:
        """Return a valid request body (JSON), used for documentation, warm-up and load tests."""

    def examples(self) -> list[dict[str, Any]]:
        """Return request bodies that together use every option of the request, the simplest first.

        They become the golden requests of a model whose data must not be redistributed.
        """
        return [self.example()]

    def parse(self, body: Any, limits: Limits) -> Request:
        """Validate a JSON body. Raises pydantic.ValidationError or InvalidInput.

        `limits` is passed to the validators as their context.
        """
        if isinstance(body, dict) and len(body) > _MAX_FIELDS:
            raise InvalidInput(f"The request has {len(body):,} fields; at most {_MAX_FIELDS} are accepted.")
        return self.request_type.model_validate(body, context=limits)

    def agreement(self, ours: Any, theirs: Any) -> float:
        """Return how far the answers of two versions of a model to one request agree, 0…1.

        Decisions (labels, ids, booleans) are equal or not, numbers are close or not (`tasks/comparison.py`). Tasks that
        answer with an image, a mask, points or a ranking override this.
        """
        our_fields, their_fields = ours.plain(), theirs.plain()
        if self.compared_fields:
            our_fields, their_fields = (
                {name: fields[name] for name in self.compared_fields if name in fields}
                for fields in (our_fields, their_fields)
            )
        return agreement(our_fields, their_fields)

    def answer(self, run: Run, body: Any, limits: Limits | None = None) -> Answer:
        """Answer one request body, unbatched, with all steps from `parse` to `postprocess`.

        Goldens are recorded and replayed this way, and tests compare the service's answers with it.
        """
        limits = limits or Limits()
        request = self.parse(body, limits)
        samples = self.preprocess(self.decode(request, limits))
        return self.postprocess(run(samples.arrays), samples, request)


def parameters_of(task: Task) -> dict[str, Any]:
    """Return a task's fields as plain JSON values, without the fields that are stored in files."""
    parameters: dict[str, Any] = TypeAdapter(type(task)).dump_python(task, mode="json", exclude=set(task.files))
    return parameters


def files_of(task: Task) -> dict[str, str]:
    """Return the contents of the fields that are stored in files, by file name."""
    if not task.files:
        return {}
    values = TypeAdapter(type(task)).dump_python(task, mode="json", include=set(task.files))
    return {
        name: values[field] if _is_text(type(task), field) else json.dumps(values[field], ensure_ascii=False) + "\n"
        for field, name in task.files.items()
    }


def build_task(task_class: type[Task], parameters: Mapping[str, Any], files: Mapping[str, str] | None = None) -> Task:
    """Build a task from its parameters and files: the inverse of `parameters_of` and `files_of`.

    Raises ValueError if a file is missing or not JSON, and pydantic.ValidationError (a ValueError) if a field is
    invalid.
    """
    contents = files or {}
    if missing := sorted(set(task_class.files.values()) - set(contents)):
        raise ValueError(f"it also needs {', '.join(missing)}")
    fields = {
        field: contents[name] if _is_text(task_class, field) else _parse_json(contents[name], name)
        for field, name in task_class.files.items()
    }
    return TypeAdapter(task_class).validate_python({**parameters, **fields})


def _is_text(task_class: type[Task], field: str) -> bool:
    return get_type_hints(task_class)[field] is str


def _parse_json(text: str, name: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
