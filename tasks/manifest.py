"""What lies in a model's folder: the manifest, the files it names, and the golden requests with their answers.

    models/<name>/<version>/manifest.json   what is here: written last, so that its presence means the rest is whole
                            model.onnx      the graph
                            goldens.json    requests with the answers the trainer got, to be replayed before serving
                            README.md       the card
                            …               what the task keeps in files of its own: a tokenizer, a table of films

Nothing here is executed, and nothing outside the folder is read.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks import task_names, task_type
from tasks.contract import Task, files_of, task_from

MANIFEST = "manifest.json"
MODEL = "model.onnx"
GOLDENS = "goldens.json"
CARD = "README.md"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")]


class BrokenModel(ValueError):
    """A model folder that cannot be served, and why."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """A file of the folder."""

    sha256: str
    size: Annotated[int, Field(description="bytes")]


class Metric(_Part):
    """A figure, and how it was found."""

    name: str
    value: float
    protocol: str


class DataSource(_Part):
    """What the model was trained on, and under which licence."""

    name: str
    licence: str
    sha256: str | None = None
    address: str | None = None
    redistributable: bool = False


class Manifest(_Part):
    """All that is known of a published model."""

    format: Literal[1] = 1
    name: Name
    version: Version
    task: str
    title: str
    parameters: dict[str, Any]
    opset: int
    parity: Annotated[
        float | None,
        Field(description="Largest difference between network and graph, of outputs that are numbers."),
    ]
    batch_invariance: Annotated[
        dict[str, Annotated[float, Field(ge=0)]] | None,
        Field(
            description="For each output, the largest difference between a sample's alone and in a batch, on a CPU: "
            "relative to its magnitude where that is above 1, the share that differs, or levels of 255, by its "
            "meaning. None where nobody measured it."
        ),
    ] = None
    golden_tolerance: Annotated[float, Field(ge=0, le=0.01)]
    metrics: tuple[Metric, ...]
    data: DataSource
    licence: Annotated[str, Field(description="Under which the model may be used.")]
    created: str
    code: Annotated[
        str, Field(description="The commit that published it, or 'unknown'; the card has the one it was trained with.")
    ]
    files: dict[FileName, FileEntry]

    def load_task(self, folder: Path) -> Task:
        """The task, as it was trained, with what it keeps in files of this folder. Raises BrokenModel."""
        if self.task not in task_names():
            raise BrokenModel(f"The task '{self.task}' is not one of {', '.join(task_names())}.")
        kind = task_type(self.task)
        texts = {name: self._text_of(folder, name) for name in kind.files.values()}
        try:
            return task_from(kind, self.parameters, texts)
        except ValueError as error:
            raise BrokenModel(f"The parameters do not describe a task of kind '{self.task}': {error}.") from None

    def _text_of(self, folder: Path, name: str) -> str:
        if name not in self.files:
            raise BrokenModel(f"The manifest names no {name}, which a task of kind '{self.task}' needs.")
        try:
            return (folder / name).read_bytes().decode("utf-8")
        except OSError as error:
            raise BrokenModel(f"{name} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise BrokenModel(f"{name} is not text in UTF-8.") from None


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entries_of(folder: Path) -> dict[str, FileEntry]:
    """Each file of the folder but the manifest."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    return {path.name: FileEntry(sha256=sha256_of(path), size=path.stat().st_size) for path in paths}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a model folder. Raises BrokenModel."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BrokenModel(f"{MANIFEST} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BrokenModel(f"{MANIFEST} is not valid: {where}: {first['msg']}.") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest: the last thing that is written into a model folder."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def write_task_files(folder: Path, task: Task) -> None:
    """Writes what the task keeps in files of its own; to be called before the manifest is made, which names them."""
    for name, text in files_of(task).items():
        (folder / name).write_bytes(text.encode("utf-8"))


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Checks that each file is there, inside the folder, with the size and hash it had. Raises BrokenModel."""
    for name, entry in manifest.files.items():
        path = folder / name
        if path.is_symlink() and path.resolve().parent != folder.resolve():
            raise BrokenModel(f"{name} lies outside the model's folder.")
        if not path.is_file():
            raise BrokenModel(f"{name} is missing.")
        if path.stat().st_size != entry.size or sha256_of(path) != entry.sha256:
            raise BrokenModel(f"{name} is not the file that was published: its checksum differs.")
    for needed in (MODEL, GOLDENS):
        if needed not in manifest.files:
            raise BrokenModel(f"The manifest names no {needed}.")
