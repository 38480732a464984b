"""`python -m service import FILE.onnx --task TASK …`: make a model folder from a graph of another program."""

import argparse
import base64
import json
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from service.importing.adapt import adapt_graph
from service.importing.conventions import Conventions
from service.importing.errors import CannotImport
from service.importing.folder import Description, write_model
from service.importing.foreign_graph import inputs_of, outputs_of, read_graph
from service.importing.parameters import add_field_options, build_imported_task, infer_parameters
from tasks import task_names, task_type
from tasks.contract import InvalidInput, Limits, Task
from tasks.system_errors import describe_os_error
from tasks.version_folder import write_version

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_EPILOG = "`--task TASK --help` lists the parameters of a task. The format of the folder: docs/model-folders.md."


def import_model(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status: 0 if a version was written, 2 if not, 130 if interrupted."""
    try:
        with _interrupted_by_sigterm():
            folder, notes = _import(arguments)
    except CannotImport as error:
        print(f"import: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"import: {describe_os_error(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("import: interrupted; nothing was written.", file=sys.stderr)
        return 130
    for note in notes:
        print(note)
    print(f"Imported: {folder}")
    models = shlex.quote(str(folder.parents[1]))
    print(f"To serve it and get an example request: python -m service --models {models} --only {folder.parent.name}")
    return 0


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM interrupt as Ctrl-C does, so that a partial folder is removed."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _import(words: Sequence[str]) -> tuple[Path, tuple[str, ...]]:
    task_name = _task_name(words)
    task_class = task_type(task_name)
    arguments = _parser(task_name, task_class).parse_args(_join_negative_numbers(words))
    conventions = _conventions(arguments)
    path = Path(arguments.file)
    model = read_graph(path)
    about = _describe(arguments, path)
    inferred = infer_parameters(task_class, inputs_of(model), outputs_of(model), conventions)
    task = build_imported_task(task_class, arguments, inferred)
    requests = [*_examples(task), *(_read_example(task, Path(file)) for file in arguments.example)]
    _check_requests(task, requests)
    adapted = adapt_graph(model, task_name, task, conventions, requests)

    def write(folder: Path, version: str) -> None:
        write_model(
            folder,
            version,
            about=about,
            task_name=task_name,
            task=task,
            adapted=adapted,
            requests=requests,
            command=_command(words),
        )

    return write_version(Path(arguments.models) / about.name, write), adapted.notes


def _task_name(words: Sequence[str]) -> str:
    """Return the task, which decides on the other options. Prints the general help if there is none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task")
    name: str | None = parser.parse_known_args(words)[0].task
    if name is None and {"-h", "--help"} & set(words):
        _parser(None, None).parse_args(["--help"])
    if name not in task_names():
        given = f"'{name}' is not a task" if name else "--task is missing"
        raise CannotImport(f"{given}; the tasks are {', '.join(task_names())}.")
    return name


def _join_negative_numbers(words: Sequence[str]) -> list[str]:
    """Return `--pixels -1..1` as `--pixels=-1..1`, which argparse does not take for another flag."""
    joined: list[str] = []
    for word in words:
        if joined and re.match(r"-\d", word) and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += "=" + word
        else:
            joined.append(word)
    return joined


def _parser(task_name: str | None, task_class: type[Task] | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service import",
        usage="%(prog)s FILE.onnx --task TASK [options]",
        description="Make a model folder from an ONNX graph that another program exported, as its next version.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE.onnx", help="the graph; weights in files beside it are read too")
    parser.add_argument("--task", required=True, help=f"what the graph does: {', '.join(task_names())}")
    parser.add_argument("--models", default="models", metavar="DIR", help="folder of models (default: models)")
    about = parser.add_argument_group("about the model")
    about.add_argument("--name", default="", help="name of the model in addresses (default: that of the file)")
    about.add_argument("--title", default="", help="title of the model, for people (default: its name)")
    about.add_argument("--description", default="", help="what the model is for, for its card")
    about.add_argument("--licence", default="unknown", help="licence of the model (default: unknown)")
    about.add_argument("--data", default="unknown", metavar="NAME", help="name of the training data (default: unknown)")
    about.add_argument("--data-licence", default="unknown", metavar="LICENCE", help="its licence (default: unknown)")
    about.add_argument(
        "--example",
        action="append",
        default=[],
        metavar="FILE",
        help="a golden request in addition to made-up ones: an image or text for the model, or the JSON body of a "
        "request; it becomes part of the folder",
    )
    if task_name is None or task_class is None:
        return parser
    parser.add_argument("--parameters", default="", metavar="FILE", help="JSON object with parameters of the task")
    graph = parser.add_argument_group("what the graph expects and returns")
    for item in fields(Conventions):
        if task_name in item.metadata["tasks"]:
            graph.add_argument(
                "--" + item.name.replace("_", "-"),
                default=None,
                choices=item.metadata["choices"] or None,
                metavar=None if item.metadata["choices"] else "NUMBERS",
                help=item.metadata["doc"],
            )
    add_field_options(parser, task_class)
    return parser


def _conventions(arguments: argparse.Namespace) -> Conventions:
    given: dict[str, Any] = {}
    for item in fields(Conventions):
        text = getattr(arguments, item.name, None)
        if text is not None:
            given[item.name] = _numbers(item.name, text) if item.default == () else text
    return Conventions(**given)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CannotImport(f"--{name} takes numbers separated by commas, not '{text}'.") from None


def _describe(arguments: argparse.Namespace, path: Path) -> Description:
    name = arguments.name or re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_")[:64]
    if not _NAME.fullmatch(name):
        raise CannotImport(
            f"--name {name or path.stem}: a name consists of lower-case letters, digits, '-' and '_' (at most 64), and "
            "starts with a letter or digit."
        )
    return Description(
        name=name,
        title=" ".join(arguments.title.split()) or name,
        description=arguments.description.strip(),
        licence=arguments.licence,
        data=arguments.data,
        data_licence=arguments.data_licence,
    )


def _examples(task: Task) -> list[dict[str, Any]]:
    try:
        return task.examples()
    except ValueError as error:  # Parameters that are possible by themselves but not together.
        raise CannotImport(f"The parameters do not fit the task: {str(error).rstrip('.')}.") from None


def _read_example(task: Task, path: Path) -> dict[str, Any]:
    """Read a request: a JSON body, or the file of an upload."""
    content = path.read_bytes()
    if path.suffix == ".json":
        try:
            body = json.loads(content)
        except ValueError as error:
            raise CannotImport(f"--example {path} is not JSON: {error}.") from None
        if not isinstance(body, dict):
            raise CannotImport(f"--example {path} must be a JSON object, the body of a request.")
        return body
    if task.upload is None:
        raise CannotImport(f"--example {path}: the task takes no files; give the body of a request as a .json file.")
    if any(media_type.startswith("text/") for media_type in task.upload.media_types):
        return {task.upload.field: content.decode("utf-8-sig", errors="replace")}
    return {task.upload.field: base64.b64encode(content).decode("ascii")}


def _check_requests(task: Task, requests: Sequence[dict[str, Any]]) -> None:
    for body in requests:
        try:
            task.preprocess(task.decode(task.parse(body, Limits()), Limits()))
        except ValidationError as error:
            first = error.errors()[0]
            location = ".".join(map(str, first["loc"]))
            raise CannotImport(f"An example is not a valid request: {location}: {first['msg']}.") from None
        except InvalidInput as error:
            raise CannotImport(f"An example is not a valid request: {error}") from None
        except Exception as error:  # Parameters that are possible by themselves but not together: no columns, say.
            reason = str(error).rstrip(".") or type(error).__name__
            raise CannotImport(f"The parameters do not fit the task: {reason}.") from None


def _command(words: Sequence[str]) -> str:
    """Return the command for the card: of files and folders of this machine, only the names."""
    names = [Path(word).name if "/" in word and Path(word).exists() else word for word in words]
    return shlex.join(["python", "-m", "service", "import", *names])
