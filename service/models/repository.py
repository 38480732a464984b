"""The models there are: found in a folder, proved, and then served.

    <root>/<name>/<version>/manifest.json

A model that cannot be read, is not what was published, or does not give the answers its goldens promise is kept with
the reason and never becomes ready; the rest are served. Where the newest version fails, the one before it serves.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock, RLock
from typing import Any
from weakref import WeakValueDictionary, finalize

from service.backends.base import Backend, BackendError, OpenBackend
from service.engine.pipeline import Pipeline
from service.errors import ModelNotFound, ModelUnavailable
from service.models.verification import verify
from service.models.warmup import GoldenRun, measure_memory, refresh
from tasks.contract import Task, TensorSpec
from tasks.deviation import BatchDeviation
from tasks.goldens import Golden, read_goldens
from tasks.manifest import CARD, MANIFEST, MODEL, BrokenModel, Manifest, read_manifest, verify_files

_LOG = logging.getLogger(__name__)

_Graph = tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""A graph's SHA-256, and as what it is read."""
_TO_LOAD = "It is not loaded yet."
_REPLACED = "A newer version is served."
_TRIED = "It is tried in the shadow of the version that is served."
MakePipeline = Callable[[str, Task, Backend, Sequence[GoldenRun]], Pipeline]
"""Joins a task to its backend, and warms them up."""


@dataclass(frozen=True)
class Model:
    """A version of a model that is being served."""

    manifest: Manifest
    task: Task
    pipeline: Pipeline
    goldens: tuple[Golden, ...]
    card: str
    invariance: BatchDeviation
    """How far the batch changes each output on this device, as the goldens show it."""

    @property
    def example(self) -> Mapping[str, Any]:
        """A request body with a real answer: the first golden."""
        return self.goldens[0].request

    @property
    def example_answer(self) -> dict[str, Any]:
        """The answer to the example."""
        return {"model": self.manifest.name, "version": self.manifest.version} | self.goldens[0].answer


@dataclass(frozen=True)
class Entry:
    """A version of a model in the folder: served, tried in the shadow of one that is, or not, and why."""

    name: str
    version: str
    model: Model | None = None
    reason: str | None = _TO_LOAD
    content: frozenset[tuple[str, int, int]] = frozenset()
    """Name, size and time of each file when it was read: a version that failed is tried again when they change."""
    shadow: Model | None = None
    """Proved, and served to nobody yet: it is asked what another one answers."""


@dataclass
class Repository:
    """Finds models and holds those that are served.

    Attributes:
        root: the folder of the models.
        versions: how many of the newest versions of each to serve; 0 for all.
        open_backend: the runtime.
        make_pipeline: joins a task to its backend.
        concurrency: models that are loaded at a time.
        is_tried: whether new versions of a model are tried in the shadow of the one that serves, before they do.
        on_retired: is given the pipeline of a version that is no longer served, once its last request has ended; from
            whichever thread that is.
    """

    root: Path
    versions: int
    open_backend: OpenBackend
    make_pipeline: MakePipeline
    concurrency: int = 1
    on_loaded: Callable[[str, str, float], None] = lambda name, version, seconds: None
    is_tried: Callable[[str], bool] = lambda name: False
    on_retired: Callable[[Pipeline], None] = Pipeline.close
    _entries: dict[str, tuple[Entry, ...]] = field(default_factory=dict, init=False)
    """Of each model, the newest version first. What stands here is never changed, but replaced as a whole: whoever
    looks sees the versions as they were before a change, or after it."""
    _changing: RLock = field(default_factory=RLock, init=False)
    _locks: dict[_Graph, Lock] = field(default_factory=dict, init=False)
    _backends: WeakValueDictionary[_Graph, Backend] = field(default_factory=WeakValueDictionary, init=False)
    """As long as a model is served with them."""
    loaded: bool = field(default=False, init=False)
    """Whether all have been tried; said by whoever loads them."""

    def scan(self) -> None:
        """Lists what lies in the folder, newest version first. Raises BrokenModel where there is no such folder."""
        if not self.root.is_dir():
            raise BrokenModel(f"There is no folder of models at {self.root}.")
        for name, versions in self._there():
            self._list(name, versions)

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

    def rescan(self) -> bool:
        """Takes up the versions that have come since, each as soon as it is proved; until then the old one serves.

        A version that breaks never serves, and requests under way end with the version they began with. What was
        taken out of the folder is served until a newer version is, or the server starts again. Tells whether any came.
        """
        any_came = False
        for name, versions in self._there():
            before = list(self._models_of(name))
            self._list(name, versions)
            if any(entry.reason == _TO_LOAD for entry in self._entries[name]):
                self._load_newest(name)
            for model in self._models_of(name):
                if not any(model is other for other in before):
                    any_came = True
                    _once_more(refresh, model)
        return any_came

    def _models_of(self, name: str) -> Iterator[Model]:
        """What is in memory of a model's versions."""
        for entry in self._entries.get(name, ()):
            if found := entry.model or entry.shadow:
                yield found

    def _list(self, name: str, versions: list[str]) -> None:
        """Adds the versions that are new, and those that failed and are others by now, as not loaded."""
        changed = {entry.version for entry in self._entries.get(name, ()) if self._has_changed(entry)}
        with self._changing:
            kept = [entry for entry in self._entries.get(name, ()) if entry.version not in changed]
            known = {entry.version for entry in kept}
            entries = kept + [Entry(name, version) for version in versions if version not in known]
            self._entries[name] = tuple(sorted(entries, key=lambda entry: int(entry.version), reverse=True))

    def _has_changed(self, entry: Entry) -> bool:
        """Whether a version that failed is another by now: it may have been looked at while it was copied."""
        failed = bool(entry.content) and entry.model is None and entry.shadow is None
        return failed and entry.content != _content(self.root / entry.name / entry.version)

    def _put(self, *changed: Entry) -> None:
        """Takes these for the entries of the same versions, all at once."""
        name, new = changed[0].name, {entry.version: entry for entry in changed}
        with self._changing:
            self._entries[name] = tuple(new.get(entry.version, entry) for entry in self._entries[name])

    def load_all(self) -> None:
        """Loads the newest versions of each model, as many as are wanted; where one fails, the next older one."""
        # The largest first: it would be waited for at the end, with nothing left to do beside it.
        names = sorted(self._entries, key=lambda name: self._size_of(self._entries[name][0]), reverse=True)
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="loader") as pool:
            for loading in [pool.submit(self._load_newest, name) for name in names]:
                loading.result()
        for name in names:
            for model in self._models_of(name):
                _once_more(measure_memory, model)

    def _size_of(self, entry: Entry) -> int:
        graph = self.root / entry.name / entry.version / MODEL
        return graph.stat().st_size if graph.is_file() else 0

    def _load_newest(self, name: str) -> None:
        """Loads what is to serve; where new versions are tried first, the newest only beside one that serves."""
        if self.is_tried(name):
            if not any(entry.model for entry in self._entries[name]):
                self._load_served(name, self._entries[name][1:])
            if any(entry.model for entry in self._entries[name]):
                self._load_shadow(name)
                return
        self._load_served(name, self._entries[name])

    def _load_served(self, name: str, entries: tuple[Entry, ...]) -> None:
        wanted = self.versions or len(entries)
        served = 0
        for entry in entries:
            now = self._loaded(entry) if served < wanted and entry.reason == _TO_LOAD else entry
            if now is not entry:
                self._put(now)
            served += now.model is not None
        self._retire(name)

    def _load_shadow(self, name: str) -> None:
        """Of the versions newer than the one that serves, proves the newest that can be, to be tried."""
        for entry in self._entries[name]:
            if entry.model or entry.shadow:
                return
            if entry.reason != _TO_LOAD:
                continue
            now = self._loaded(entry)
            if now.model is None:
                self._put(now)
                continue
            with self._changing:  # The event loop may promote one of them at any time.
                older = [replace(other, shadow=None, reason=_TO_LOAD) for other in self._entries[name] if other.shadow]
                self._put(replace(now, model=None, shadow=now.model, reason=_TRIED), *older)
            return

    def _retire(self, name: str) -> None:
        """Leaves as many of the newest that can serve as are wanted."""
        with self._changing:
            entries = self._entries[name]
            wanted = self.versions or len(entries)
            left = []
            for entry in entries:
                left.append(entry if wanted > 0 else replace(entry, model=None, shadow=None, reason=_REPLACED))
                wanted -= entry.model is not None
            self._entries[name] = tuple(left)

    def shadow_of(self, model: Model) -> Model | None:
        """The version that is tried in the shadow of this one; None where none is, or another version serves."""
        entries = self._entries.get(model.manifest.name, ())
        served = next((entry.model for entry in entries if entry.model), None)
        return next((entry.shadow for entry in entries if entry.shadow), None) if served is model else None

    def shadows(self) -> Iterator[Model]:
        """Every version that is being tried."""
        return (entry.shadow for entry in self.entries() if entry.shadow is not None)

    def promote(self, shadow: Model) -> None:
        """Serves the version that was tried, as any new one that is proved; does nothing where it is tried no more."""
        with self._changing:
            if entry := self._entry_of(shadow):
                self._put(replace(entry, model=shadow, shadow=None, reason=None))
                self._retire(entry.name)

    def roll_back(self, shadow: Model, reason: str) -> None:
        """Gives a version up that was tried, until its files change."""
        with self._changing:
            if entry := self._entry_of(shadow):
                self._put(replace(entry, shadow=None, reason=reason))

    def _entry_of(self, shadow: Model) -> Entry | None:
        return next((entry for entry in self._entries[shadow.manifest.name] if entry.shadow is shadow), None)

    def _loaded(self, entry: Entry) -> Entry:
        """The version with its model, or with what is wrong with it."""
        began = time.perf_counter()
        content = _content(self.root / entry.name / entry.version)
        try:
            model = self._prove(entry)
        except Exception as error:  # Whatever is wrong with one model's folder, the others are served.
            expected = isinstance(error, BrokenModel | BackendError | OSError)
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            told: dict[str, Any] = {"model": entry.name, "version": entry.version, "reason": reason}
            _LOG.error("model unavailable", extra={"fields": told}, exc_info=None if expected else error)
            return replace(entry, reason=reason, content=content)
        seconds = time.perf_counter() - began
        self.on_loaded(entry.name, entry.version, seconds)
        told = {"model": entry.name, "version": entry.version, "seconds": round(seconds, 3)}
        told |= {"device": model.pipeline.device, "batch_limit": model.pipeline.batch_limit}
        _LOG.info("model ready", extra={"fields": told})
        return replace(entry, model=model, reason=None, content=content)

    def _prove(self, entry: Entry) -> Model:
        """Loads a version and replays its goldens, alone and in one batch."""
        folder = self.root / entry.name / entry.version
        manifest = read_manifest(folder)
        if (manifest.name, manifest.version) != (entry.name, entry.version):
            raise BrokenModel(
                f"The manifest is that of {manifest.name}/{manifest.version}: "
                f"'name' and 'version' in it are to be {entry.name} and {entry.version}."
            )
        verify_files(folder, manifest)
        task = manifest.load_task(folder)
        goldens = read_goldens(folder)
        if not goldens:
            raise BrokenModel("There are no golden requests: nothing proves that this model is what was trained.")
        backend = self._backend_of(folder, manifest, task)
        proof = verify(manifest, task, backend, goldens)
        card = (folder / CARD).read_text("utf-8") if CARD in manifest.files else ""
        pipeline = self.make_pipeline(entry.name, task, backend, proof.proven)
        model = Model(manifest, task, pipeline, goldens, card, proof.invariance)
        # Requests under way hold the model: the last of them, or the swap, lets it go.
        finalize(model, self.on_retired, pipeline).atexit = False
        return model

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

    def close(self) -> None:
        """Lets go of all models."""
        with self._changing:
            self._entries = {}

    def entries(self) -> Iterator[Entry]:
        """Every version of every model, by name, the newest first."""
        for entries in list(self._entries.values()):  # The loader may add a model meanwhile.
            yield from entries

    def versions_of(self, name: str) -> tuple[Entry, ...]:
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
