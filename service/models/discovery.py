"""Discovery: which models and versions the folder of models contains.

    <root>/<name>/<version>/manifest.json

What is there is what can be served. A version is there if it has a manifest, which is written last; one that has a
graph (any .onnx file) but no manifest is listed as unusable. A folder that cannot be read says nothing about what it
contains: what is known of it stays.
"""

import logging
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tasks.manifest import MANIFEST, MODEL, NAME_PATTERN, VERSION_PATTERN, UnreadableModel

_LOG = logging.getLogger(__name__)
_GRAPH_SUFFIX = ".onnx"
_NAME, _VERSION = re.compile(NAME_PATTERN), re.compile(VERSION_PATTERN)


@dataclass(frozen=True)
class FoundVersion:
    """A version in the folder of models.

    Attributes:
        problem: why it cannot be used, if that is known already.
        is_readable: whether its folder can be read; if not, a version in memory stays.
    """

    version: str
    problem: str | None = None
    is_readable: bool = True


@dataclass(frozen=True)
class Found:
    """The content of the folder of models.

    Attributes:
        models: the versions of each model, newest first.
        unreadable: models whose folder cannot be read.
    """

    models: dict[str, tuple[FoundVersion, ...]]
    unreadable: frozenset[str] = frozenset()


@dataclass
class ModelFolder:
    """The folder of models. Problems are logged when they are first seen, not at every look.

    Attributes:
        root: its path.
        only: names of the models to consider; empty for all.
    """

    root: Path
    only: frozenset[str] = frozenset()
    _known: set[str] = field(default_factory=set, init=False)
    _seen: set[str] = field(default_factory=set, init=False)
    """Problems seen by the last look, and by this one."""
    _identity: tuple[int, int] | None = field(default=None, init=False)
    """Device and inode of the root when it last contained something."""

    def look(self) -> Found | None:
        """Return what the folder contains; None if it is an empty folder in the place of another one.

        That is what a volume leaves behind that is not mounted at the moment. Raises UnreadableModel.
        """
        self._seen = set()
        try:
            status = os.stat(self.root)
            folders = sorted(self._folders(self.root))
        except OSError as error:
            raise UnreadableModel(_describe_root_error(self.root, error)) from None
        identity = (status.st_dev, status.st_ino)
        if not folders and self._identity not in (None, identity):
            return None
        self._identity = identity
        found = self._look_into(folders)
        self._known = self._seen
        return found

    def _look_into(self, folders: list[str]) -> Found:
        models, unreadable = {}, set()
        for name in folders:
            if self.only and name not in self.only:
                continue
            if not _NAME.fullmatch(name):
                self._report(name, "A model's name consists of lower-case letters, digits, '-' and '_'.")
                continue
            try:
                versions = list(self._find_versions(name))
            except FileNotFoundError:
                continue  # It was removed in the meantime.
            except OSError as error:
                self._report(name, f"The folder cannot be read: {error.strerror}.")
                unreadable.add(name)
                continue
            if versions:
                models[name] = tuple(sorted(versions, key=lambda found: int(found.version), reverse=True))
        return Found(models, frozenset(unreadable))

    def _find_versions(self, name: str) -> Iterator[FoundVersion]:
        """Yield the versions of a model, in any order. Raises OSError."""
        for version in self._folders(self.root / name):
            path = f"{name}/{version}"
            if not _VERSION.fullmatch(version):
                self._report(path, "A version is a positive integer without leading zeros.")
            elif (found := self._look_at(name, version)) is not None:
                if found.problem is not None:
                    self._report(path, found.problem)
                yield found

    def _look_at(self, name: str, version: str) -> FoundVersion | None:
        """Return a version; None if its folder contains none, or has been removed in the meantime."""
        try:
            files = os.listdir(self.root / name / version)
        except FileNotFoundError:
            return None
        except OSError as error:
            return FoundVersion(version, f"The folder cannot be read: {error.strerror}.", is_readable=False)
        if MANIFEST in files:
            return FoundVersion(version)
        graphs = sorted((file for file in files if _is_graph(file)), key=lambda file: (file != MODEL, file))
        if not graphs:
            return None
        command = _import_command(f"{name}/{version}/{graphs[0]}", name)
        return FoundVersion(version, f"{MANIFEST} is missing, which describes the model. {command}")

    def _folders(self, folder: Path) -> Iterator[str]:
        """Yield the names of the folders in a folder, without hidden ones. Raises OSError."""
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if os.path.isdir(entry.path):  # Unlike `entry.is_dir`, it does not raise for a link to itself.
                    yield entry.name
                elif _is_graph(entry.name):
                    path = Path(folder, entry.name).relative_to(self.root)
                    self._report(str(path), f"A graph belongs in a folder NAME/VERSION. {_import_command(str(path))}")

    def _report(self, path: str, problem: str) -> None:
        """Log a problem, unless the last look has found it too."""
        path = _printable(path)
        line = f"{path}: {problem}"
        if line not in self._known | self._seen:
            _LOG.warning("not a usable model", extra={"fields": {"path": str(self.root / path), "reason": problem}})
        self._seen.add(line)


def _is_graph(file: str) -> bool:
    return file.endswith(_GRAPH_SUFFIX) and not file.startswith(".")


def _printable(path: str) -> str:
    """Return a path that can be encoded: a file name may be any bytes."""
    return path.encode("utf-8", "backslashreplace").decode()


def _import_command(graph: str, name: str | None = None) -> str:
    """Return a sentence with the command; `graph` is a path in the folder of models."""
    option = f" --name {name}" if name else ""
    return f"To make a model of a graph: python -m service import {shlex.quote(_printable(graph))} --task TASK{option}"


def _describe_root_error(root: Path, error: OSError) -> str:
    """Return a sentence that says why the folder of models cannot be read."""
    if isinstance(error, FileNotFoundError):
        return f"The folder of models does not exist: {root}."
    if isinstance(error, NotADirectoryError):
        return f"The folder of models is not a folder: {root}."
    return f"The folder of models cannot be read: {root}: {error.strerror or error}."
