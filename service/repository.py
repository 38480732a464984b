"""The models there are: found in a folder, proved, and then served.

    <root>/<name>/<version>/manifest.json

A model that cannot be read, is not what was published, or does not give the answers its goldens promise is kept with
the reason and never becomes ready; the rest are served. Where the newest version fails, the one before it serves.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from service.backends.base import Backend, BackendError, OpenBackend
from service.errors import ModelNotFound, ModelUnavailable
from service.pipeline import Pipeline
from service.warm_up import Proven, measure_memory, refresh
from tasks.contract import Arrays, Limits, Samples, Task, TensorSpec
from tasks.manifest import (
    CARD,
    MANIFEST,
    MODEL,
    BrokenModel,
    Golden,
    Manifest,
    difference,
    read_goldens,
    read_manifest,
    verify_files,
)

_LOG = logging.getLogger(__name__)

_Graph = tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""A graph's SHA-256, and as what it is read."""
_TO_LOAD = "It is not loaded yet."
_REPLACED = "A newer version is served."
MakePipeline = Callable[[str, Task, Backend, Sequence[Proven]], Pipeline]
"""Joins a task to its backend, and warms them up."""


@dataclass(frozen=True)
class Model:
    """A version of a model that is being served."""

    manifest: Manifest
    task: Task
    pipeline: Pipeline
    goldens: tuple[Golden, ...]
    card: str

    @property
    def example(self) -> Mapping[str, Any]:
        """A request body with a real answer: the first golden."""
        return self.goldens[0].request

    @property
    def example_answer(self) -> dict[str, Any]:
        """The answer to the example."""
        return {"model": self.manifest.name, "version": self.manifest.version} | self.goldens[0].answer


@dataclass
class Entry:
    """A version of a model in the folder: served, or not and why."""

    name: str
    version: str
    model: Model | None = None
    reason: str | None = _TO_LOAD
    content: frozenset[tuple[str, int, int]] = frozenset()
    """Name, size and time of each file of a version that failed: it is tried again when they have changed."""


@dataclass
class Repository:
    """Finds models and holds those that are served.

    Attributes:
        root: the folder of the models.
        versions: how many of the newest versions of each to serve; 0 for all.
        open_backend: the runtime.
        make_pipeline: joins a task to its backend.
        at_once: models that are loaded at a time.
    """

    root: Path
    versions: int
    open_backend: OpenBackend
    make_pipeline: MakePipeline
    at_once: int = 1
    on_loaded: Callable[[str, str, float], None] = lambda name, version, seconds: None
    _entries: dict[str, list[Entry]] = field(default_factory=dict, init=False)
    _locks: dict[_Graph, Lock] = field(default_factory=dict, init=False)
    _backends: WeakValueDictionary[_Graph, Backend] = field(default_factory=WeakValueDictionary, init=False)
    """As long as a model is served with them."""
    loaded: bool = field(default=False, init=False)

    def scan(self) -> None:
        """Lists what lies in the folder, newest version first. Raises BrokenModel where there is no such folder."""
        if not self.root.is_dir():
            raise BrokenModel(f"There is no folder of models at {self.root}.")
        for name, versions in self._there():
            self._entries[name] = [Entry(name, version) for version in versions]

    def _there(self) -> Iterator[tuple[str, list[str]]]:
        """Each model in the folder with its versions, the newest first."""
        for folder in sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")):
            try:
                found = [
                    path.name for path in folder.iterdir() if (path / MANIFEST).is_file() and path.name.isdecimal()
                ]
            except OSError as error:
                _LOG.error("folder unreadable", extra={"fields": {"folder": str(folder), "reason": error.strerror}})
                continue
            if found:
                yield folder.name, sorted(found, key=int, reverse=True)

    def rescan(self) -> None:
        """Takes up the versions that have come since, each as soon as it is proved; until then the old one serves.

        A version that breaks never serves, and requests under way end with the version they began with. What was
        taken out of the folder is served until a newer version is, or the server starts again.
        """
        for name, versions in self._there():
            old = self._entries.get(name, [])
            known = {entry.version for entry in old if not self._has_changed(entry)}
            new = [Entry(name, version) for version in versions if version not in known]
            if not new:
                continue
            kept = [entry for entry in old if entry.version in known]
            entries = sorted([*new, *kept], key=lambda entry: int(entry.version), reverse=True)
            self._entries[name] = entries
            self._load_newest(entries)
            for entry in entries:
                if entry in new and entry.model is not None:
                    _once_more(refresh, entry.model)

    def _has_changed(self, entry: Entry) -> bool:
        """Whether a version that failed is another by now: it may have been looked at while it was copied."""
        return bool(entry.content) and entry.content != _content(self.root / entry.name / entry.version)

    def load_all(self) -> None:
        """Loads the newest versions of each model, as many as are wanted; where one fails, the next older one."""
        # The largest first: it would be waited for at the end, with nothing left to do beside it.
        models = sorted(self._entries.values(), key=lambda entries: self._size_of(entries[0]), reverse=True)
        with ThreadPoolExecutor(self.at_once, thread_name_prefix="loader") as pool:
            for loading in [pool.submit(self._load_newest, entries) for entries in models]:
                loading.result()
        for step in (measure_memory, refresh):
            for model in self.served():
                _once_more(step, model)
        self.loaded = True

    def _size_of(self, entry: Entry) -> int:
        graph = self.root / entry.name / entry.version / MODEL
        return graph.stat().st_size if graph.is_file() else 0

    def _load_newest(self, entries: list[Entry]) -> None:
        wanted = self.versions or len(entries)
        served = 0
        for entry in entries:
            if served < wanted and entry.model is None and entry.reason == _TO_LOAD:
                self._load(entry)
            elif served >= wanted:
                entry.model, entry.reason = None, _REPLACED
            served += entry.model is not None

    def _load(self, entry: Entry) -> None:
        began = time.perf_counter()
        content = _content(self.root / entry.name / entry.version)
        try:
            entry.model = self._prove(entry)
            entry.reason = None
        except Exception as error:  # Whatever is wrong with one model's folder, the others are served.
            entry.content = content
            expected = isinstance(error, BrokenModel | BackendError | OSError)
            entry.reason = str(error) if expected else f"{type(error).__name__}: {error}"
            told: dict[str, Any] = {"model": entry.name, "version": entry.version, "reason": entry.reason}
            _LOG.error("model unavailable", extra={"fields": told}, exc_info=None if expected else error)
            return
        seconds = time.perf_counter() - began
        self.on_loaded(entry.name, entry.version, seconds)
        pipeline = entry.model.pipeline
        told = {"model": entry.name, "version": entry.version, "seconds": round(seconds, 3)}
        told |= {"device": pipeline.device, "batch_limit": pipeline.batch_limit}
        _LOG.info("model ready", extra={"fields": told})

    def _prove(self, entry: Entry) -> Model:
        """Loads a version and replays its goldens, alone and in one batch."""
        folder = self.root / entry.name / entry.version
        manifest = read_manifest(folder)
        if (manifest.name, manifest.version) != (entry.name, entry.version):
            raise BrokenModel(f"The manifest is that of {manifest.name}/{manifest.version}.")
        verify_files(folder, manifest)
        task = manifest.load_task(folder)
        goldens = read_goldens(folder)
        if not goldens:
            raise BrokenModel("There are no golden requests: nothing proves that this model is what was trained.")
        backend = self._backend_of(folder, manifest, task)
        proven = replay(task, backend, goldens, manifest.golden_tolerance)
        pipeline = self.make_pipeline(entry.name, task, backend, proven)
        card = (folder / CARD).read_text("utf-8") if CARD in manifest.files else ""
        return Model(manifest, task, pipeline, goldens, card)

    def _backend_of(self, folder: Path, manifest: Manifest, task: Task) -> Backend:
        """The graph in memory: that of another version (of any model) where its file is the same, else loaded now.

        What differs is then the task: another table of items, say, under the same network.
        """
        key = (manifest.files[MODEL].sha256, task.inputs, task.outputs)
        with self._locks.setdefault(key, Lock()):
            backend = self._backends.get(key)
            if backend is None:
                backend = self.open_backend((folder / MODEL).read_bytes(), task.inputs, task.outputs)
                self._backends[key] = backend
        return backend

    def find(self, name: str, version: str | None = None) -> Model:
        """The model, by default its newest version that is served. Raises ModelNotFound or ModelUnavailable."""
        entries = self._entries.get(name)
        if entries is None:
            names = ", ".join(self._entries) or "none"
            raise ModelNotFound(f"There is no model '{name[:64]}'; the models are: {names}.")
        if version is not None and not any(entry.version == version for entry in entries):
            listed = ", ".join(entry.version for entry in entries)
            raise ModelNotFound(f"{name} has no version '{version[:16]}'; its versions are: {listed}.")
        wanted = [entry for entry in entries if version in (None, entry.version)]
        if wanted[0].reason == _REPLACED:
            raise ModelNotFound(f"{name}/{version} is no longer served: a newer version is.")
        for entry in wanted:
            if entry.model is not None:
                return entry.model
        message = f"{name}/{wanted[0].version} is not served: {wanted[0].reason}"
        raise ModelUnavailable(message, retry_after_s=None if self.loaded else 1)

    def entries(self) -> Iterator[Entry]:
        """Every version of every model, by name, the newest first."""
        for entries in list(self._entries.values()):  # The loader may add a model meanwhile.
            yield from entries

    def versions_of(self, name: str) -> list[Entry]:
        """All versions of a model, the newest first. Raises ModelNotFound."""
        if name not in self._entries:
            self.find(name)
        return self._entries[name]

    def served(self) -> Iterator[Model]:
        """Every model that is served."""
        return (entry.model for entry in self.entries() if entry.model is not None)


def _content(folder: Path) -> frozenset[tuple[str, int, int]]:
    """Name, size in bytes and time of change in nanoseconds of each file."""
    try:
        found = [(path.name, path.stat()) for path in folder.iterdir()]
    except OSError:
        return frozenset()
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def _once_more(step: Callable[[Pipeline, Mapping[str, Any]], None], model: Model) -> None:
    """One more run of an example; what fails here fails for the request that asks for it, or does not."""
    try:
        step(model.pipeline, model.example)
    except Exception:
        _LOG.exception("%s failed", step.__name__, extra={"fields": {"model": model.manifest.name}})


def replay(task: Task, backend: Backend, goldens: tuple[Golden, ...], tolerance: float) -> list[Proven]:
    """Asks the goldens, each alone and then all in one batch. Raises BrokenModel where an answer is another."""
    requests = [task.parse(golden.request, Limits()) for golden in goldens]
    samples = [task.preprocess(task.decode(request, Limits())) for request in requests]
    alone = [backend.run_alone(one.arrays) for one in samples]
    for run, outputs in (("alone", alone), ("in a batch", _run_together(backend, samples))):
        for i, golden in enumerate(goldens):
            answer = task.postprocess(outputs[i], samples[i], requests[i])
            if found := difference(golden.answer, answer.plain(), tolerance):
                raise BrokenModel(
                    f"The graph does not give the answers it was published with: golden {i} {run}: {found}."
                )
    return [Proven(*one) for one in zip(requests, samples, alone, strict=True)]


def _run_together(backend: Backend, samples: list[Samples]) -> list[Arrays]:
    """Each one's outputs from batches of all those that have one shape."""
    shapes: dict[Any, list[int]] = {}
    for i, one in enumerate(samples):
        shapes.setdefault(tuple((name, array.shape[1:]) for name, array in one.arrays.items()), []).append(i)
    outputs: list[Arrays] = [{}] * len(samples)
    for members in shapes.values():
        arrays = {
            name: np.concatenate([samples[i].arrays[name] for i in members]) for name in samples[members[0]].arrays
        }
        ran, start = backend.run(arrays), 0
        for i in members:
            end = start + len(samples[i])
            outputs[i] = {name: array[start:end] for name, array in ran.items()}
            start = end
    return outputs
