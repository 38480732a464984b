"""The model folder: the manifest, the files it lists, and the golden requests with their answers.

    models/<name>/<version>/manifest.json   describes the folder; written last, so its presence means it is complete
                            model.onnx      the graph
                            goldens.json    requests with the answers at publication, replayed before serving
                            README.md       the model card
                            …               files of the task: a tokenizer, a table of films
                            model.int8.onnx, goldens.int8.json   a variant of lower precision, if the manifest lists it

Nothing in the folder is executed, and nothing outside it is read.

`read_files` reads each file once and returns the bytes whose hash it has verified. A server builds everything from
these bytes, so that what it serves is what it has verified, even if the folder changes meanwhile.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks import task_names, task_type
from tasks.contract import Task, build_task, files_of

MANIFEST = "manifest.json"
MODEL = "model.onnx"
GOLDENS = "goldens.json"
CARD = "README.md"

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
VERSION_PATTERN = r"^[1-9][0-9]{0,8}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Version = Annotated[str, Field(pattern=VERSION_PATTERN)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]


class BrokenModel(ValueError):
    """A model folder cannot be served; the message says why."""


class UnreadableModel(BrokenModel):
    """A file or folder of a model cannot be read; it may be possible later."""


class StrictModel(BaseModel):
    """A frozen record without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(StrictModel):
    """A file of the model folder."""

    sha256: str
    size: Annotated[int, Field(ge=0, description="bytes")]


class Metric(StrictModel):
    """A metric, its value, and how it was measured."""

    name: str
    value: float
    protocol: str


class DataSource(StrictModel):
    """The training data and its licence."""

    name: str
    licence: str
    sha256: str | None = None
    address: str | None = None
    redistributable: bool = False


class Latency(StrictModel):
    """How long a run of the variant and of the graph in 32 bits takes, measured in turn on one machine."""

    device: Literal["cpu", "cuda"]
    processor: Annotated[str, Field(description="The processor or the GPU, and how many threads a run had.")]
    batch: Annotated[int, Field(ge=1, description="Samples in a run.")]
    milliseconds: Annotated[float, Field(gt=0)]
    fp32_milliseconds: Annotated[float, Field(gt=0)]

    @property
    def speedup(self) -> float:
        """The time of the graph in 32 bits divided by that of the variant."""
        return self.fp32_milliseconds / self.milliseconds


class PrecisionLoss(StrictModel):
    """How much worse a variant is than the graph in 32 bits, measured on the same samples.

    These samples served neither to calibrate the variant nor to choose what stays in floating point.
    """

    metric: str
    value: Annotated[float, Field(description="The variant's.")]
    fp32_value: Annotated[float, Field(description="That of the graph in 32 bits.")]
    points: Annotated[
        float,
        Field(
            description="The loss: in percentage points for a metric that is a fraction of 1 and better if higher, in "
            "percent of the 32-bit graph's value for any other; negative where the variant is better."
        ),
    ]
    interval: Annotated[
        tuple[float, float] | None,
        Field(description="95 % confidence interval of the loss, in the same unit; null if there are too few samples."),
    ]
    samples: Annotated[str, Field(description="The number of samples and what they are: '341 validation images'.")]


class Variant(StrictModel):
    """The same network in a graph of lower precision, which a server may run in place of model.onnx.

    It has the inputs and outputs of model.onnx, and golden requests with its own answers.
    """

    precision: Annotated[
        Literal["fp16", "int8"],
        Field(
            description="In which numbers it computes; model.onnx computes in 32 bits, however its weights are kept."
        ),
    ]
    file: FileName
    goldens: FileName
    golden_tolerance: Annotated[float, Field(ge=0, le=0.1)]
    batch_invariance: Annotated[
        dict[str, Annotated[float, Field(ge=0)]] | None, Field(description="As for model.onnx.")
    ] = None
    loss: PrecisionLoss
    latency: tuple[Latency, ...] = ()
    method: Annotated[str, Field(description="How it was made, and which layers stay in floating point.")] = ""

    def slowest_speedup(self, device: str) -> float | None:
        """Return the smallest speed-up measured on this kind of device; None if none was measured."""
        return min((latency.speedup for latency in self.latency if latency.device == device), default=None)


class Manifest(StrictModel):
    """The description of a published model."""

    format: Literal[1] = 1
    name: Name
    version: Version
    task: str
    title: str
    description: Annotated[str, Field(description="What the model is for, in the words of its publisher.")] = ""
    parameters: dict[str, Any]
    opset: int
    parity: Annotated[
        float | None,
        Field(description="The largest difference between network and graph, over outputs that are numbers."),
    ]
    batch_invariance: Annotated[
        dict[str, Annotated[float, Field(ge=0)]] | None,
        Field(
            description="For each output, the largest difference between running a sample alone and in a batch, on a "
            "CPU. Depending on the output: relative to its magnitude if that is above 1, the fraction of elements that "
            "differs, or levels of 255. None if not measured."
        ),
    ] = None
    golden_tolerance: Annotated[float, Field(ge=0, le=0.01)]
    metrics: tuple[Metric, ...]
    data: DataSource
    licence: Annotated[str, Field(description="The licence of the model.")]
    created: str
    code: Annotated[
        str, Field(description="The commit that published it, or 'unknown'; the card names the commit of training.")
    ]
    files: dict[FileName, FileEntry]
    variants: Annotated[
        tuple[Variant, ...], Field(description="Graphs of lower precision, at most one of each; may be missing.")
    ] = ()

    @model_validator(mode="after")
    def _check_variants(self) -> "Manifest":
        precisions = [variant.precision for variant in self.variants]
        if len(set(precisions)) < len(precisions):
            raise ValueError("there are two variants of the same precision")
        for name in (name for variant in self.variants for name in (variant.file, variant.goldens)):
            if name not in self.files:
                raise ValueError(f"the file {name} of a variant is not among the files")
        return self

    def of_variant(self, variant: Variant | None) -> "Manifest":
        """Return the manifest with the tolerances of a variant in place of those of model.onnx; None: as it is."""
        if variant is None:
            return self
        tolerances = {"golden_tolerance": variant.golden_tolerance, "batch_invariance": variant.batch_invariance}
        return self.model_copy(update=tolerances)

    def load_task(self, folder: Path) -> Task:
        """Build the task from the parameters and the task's files in this folder. Raises BrokenModel."""
        names = [name for name in self._task_class().files.values() if name in self.files]
        try:
            contents = {name: (folder / name).read_bytes() for name in names}
        except OSError as error:
            raise _unreadable(error) from None
        return self.build_task(contents)

    def build_task(self, contents: Mapping[str, bytes]) -> Task:
        """Build the task from the parameters and the contents of the model's files, by name. Raises BrokenModel."""
        task_class = self._task_class()
        texts = {name: self._text(contents, name) for name in task_class.files.values()}
        try:
            return build_task(task_class, self.parameters, texts)
        except ValueError as error:
            raise BrokenModel(f"The parameters do not describe a task of kind '{self.task}': {error}.") from None

    def _task_class(self) -> type[Task]:
        try:
            return task_type(self.task)
        except KeyError:
            raise BrokenModel(f"The task '{self.task}' is not one of {', '.join(task_names())}.") from None

    def _text(self, contents: Mapping[str, bytes], name: str) -> str:
        if name not in self.files:
            raise BrokenModel(f"The manifest does not list {name}, which the task '{self.task}' needs.")
        try:
            return contents[name].decode("utf-8")
        except UnicodeDecodeError:
            raise BrokenModel(f"{name} is not UTF-8 text.") from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entries_of(folder: Path) -> dict[str, FileEntry]:
    """Return an entry for each file of the folder except the manifest."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    return {path.name: FileEntry(sha256=sha256_of(path), size=path.stat().st_size) for path in paths}


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a model folder. Raises BrokenModel."""
    path = folder / MANIFEST
    try:
        if path.exists() and not path.is_file():  # Reading a pipe would wait for ever.
            raise UnreadableModel(f"{MANIFEST} is not a file.")
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _unreadable(error) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BrokenModel(f"{MANIFEST} is not valid: {field}: {first['msg']}.") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest. Must be the last file written into a model folder."""
    values = manifest.model_dump(mode="json")
    if not manifest.variants:  # Servers that do not know the field yet accept the folder, too.
        del values["variants"]
    text = json.dumps(values, indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def write_task_files(folder: Path, task: Task) -> None:
    """Write the fields that the task stores in files. Call it before building the manifest, which lists these files."""
    for name, text in files_of(task).items():
        (folder / name).write_bytes(text.encode("utf-8"))


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check that each file exists inside the folder with its published size and hash. Raises BrokenModel."""
    for name, entry in manifest.files.items():
        _read_file(folder, name, entry)
    _check_required_files(manifest)


def read_files(folder: Path, manifest: Manifest, variant: Variant | None = None) -> dict[str, bytes]:
    """Read the files that a server of this variant needs, each once, and verify what was read. Raises BrokenModel.

    These are all that the manifest lists, except the graphs and goldens of other variants. Returns their contents by
    name.
    """
    _check_required_files(manifest)
    needed = graph_and_goldens(variant)
    graphs = {name for other in (None, *manifest.variants) for name in graph_and_goldens(other)}
    return {
        name: _read_file(folder, name, entry)
        for name, entry in manifest.files.items()
        if name in needed or name not in graphs
    }


def graph_and_goldens(variant: Variant | None) -> tuple[str, str]:
    """Return the names of the files with the graph and the golden requests of a variant; None: in 32 bits."""
    return (MODEL, GOLDENS) if variant is None else (variant.file, variant.goldens)


def _check_required_files(manifest: Manifest) -> None:
    for required in (MODEL, GOLDENS):
        if required not in manifest.files:
            raise BrokenModel(f"The manifest does not list {required}.")


def _read_file(folder: Path, name: str, entry: FileEntry) -> bytes:
    """Return the content of a file, which is never read beyond its published size."""
    path = folder / name
    try:
        # Unlike `Path.resolve`, `realpath` does not raise RuntimeError for a link to itself.
        if path.is_symlink() and os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder):
            raise BrokenModel(f"{name} is outside the model's folder.")
        if not path.is_file():
            raise BrokenModel(f"{name} is missing.")
        with path.open("rb") as file:
            content = file.read(entry.size + 1)
    except OSError as error:
        raise _unreadable(error) from None
    if len(content) != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise BrokenModel(f"{name} is not the file that was published: its checksum differs.")
    return content


def _unreadable(error: OSError) -> UnreadableModel:
    """Return an error that names the file only: the message is shown to clients, and folders are not their business."""
    name = Path(str(error.filename)).name if error.filename else "A file"
    return UnreadableModel(f"{name} cannot be read: {error.strerror or error}.")
