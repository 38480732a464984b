"""The model repository: finds model versions in a folder, loads and verifies them, and keeps those that are served.

    <root>/<name>/<version>/manifest.json

A version that cannot be read, differs from what was published, or does not reproduce its golden answers is listed with
the reason and is never served. Other versions are not affected. If the newest version fails, the one before it is
served.
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
from service.models.model import Entry, Fingerprint, LoadState, Model
from service.models.verification import GoldenRun, verify
from service.models.warmup import measure_memory, rerun_example
from tasks.contract import Task, TensorSpec
from tasks.goldens import read_goldens
from tasks.manifest import CARD, MANIFEST, MODEL, BrokenModel, Manifest, read_manifest, verify_files

_LOG = logging.getLogger(__name__)

_GraphKey = tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""The SHA-256 of a graph's file, and the inputs and outputs it is opened with."""
MakePipeline = Callable[[str, Task, Backend, Sequence[GoldenRun]], Pipeline]
"""Makes the pipeline of a task and a backend, and warms it up."""


@dataclass
class Repository:
    """Finds models and holds those that are served.

    Attributes:
        root: the folder of models.
        versions: number of newest versions to serve per model; 0 for all.
        open_backend: the runtime.
        make_pipeline: makes the pipeline of a task and a backend.
        concurrency: number of models loaded at a time.
        on_loaded: called with name, version and seconds when a version has been loaded.
        needs_evaluation: whether new versions of the named model are evaluated on shadow traffic before they serve.
        on_retired: called with the pipeline of a version that is no longer served after its last request has ended, in
            any thread.
        loaded: whether all models have been loaded or have failed; set by the caller of `load_all`.
    """

    root: Path
    versions: int
    open_backend: OpenBackend
    make_pipeline: MakePipeline
    concurrency: int = 1
    on_loaded: Callable[[str, str, float], None] = lambda name, version, seconds: None
    needs_evaluation: Callable[[str], bool] = lambda name: False
    on_retired: Callable[[Pipeline], None] = Pipeline.close
    loaded: bool = field(default=False, init=False)
    _entries: dict[str, tuple[Entry, ...]] = field(default_factory=dict, init=False)
    """The versions of each model, newest first. Each tuple is replaced as a whole, so that readers, which take no lock,
    see the state before or after a change."""
    _lock: RLock = field(default_factory=RLock, init=False)
    """Held while entries are changed."""
    _graph_locks: dict[_GraphKey, Lock] = field(default_factory=dict, init=False)
    _backends: WeakValueDictionary[_GraphKey, Backend] = field(default_factory=WeakValueDictionary, init=False)
    """Open graphs, for as long as a model uses them."""

    def scan(self) -> None:
        """List the versions in the folder without loading them. Raises BrokenModel if the folder does not exist."""
        if not self.root.is_dir():
            raise BrokenModel(f"The folder of models does not exist: {self.root}.")
        for name, versions in self._find_versions():
            self._update_entries(name, versions)

    def _find_versions(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each model in the folder with its versions, newest first."""
        for folder in sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")):
            try:
                versions = [
                    path.name for path in folder.iterdir() if (path / MANIFEST).is_file() and path.name.isdecimal()
                ]
            except OSError as error:
                _LOG.error("folder unreadable", extra={"fields": {"folder": str(folder), "reason": error.strerror}})
                continue
            if versions:
                yield folder.name, sorted(versions, key=int, reverse=True)

    def rescan(self) -> bool:
        """Load versions that have been added since the last scan; return whether any of them can be used.

        Each one replaces its predecessor as soon as it is verified. Requests in progress finish with the version they
        started with. A version whose folder was removed is served until a newer one replaces it or the server restarts.
        """
        has_new_models = False
        for name, versions in self._find_versions():
            models_before = list(self._models_in_memory(name))
            self._update_entries(name, versions)
            if any(entry.state is LoadState.PENDING for entry in self._entries[name]):
                self._load_newest(name)
            for model in self._models_in_memory(name):
                if not any(model is known for known in models_before):
                    has_new_models = True
                    _run_example(rerun_example, model)
        return has_new_models

    def _models_in_memory(self, name: str) -> Iterator[Model]:
        return (entry.loaded for entry in self._entries.get(name, ()) if entry.loaded is not None)

    def _update_entries(self, name: str, versions: list[str]) -> None:
        """Add pending entries for versions that are new and for those whose files have changed."""
        changed = {entry.version for entry in self._entries.get(name, ()) if self._has_changed(entry)}
        with self._lock:
            kept = [entry for entry in self._entries.get(name, ()) if entry.version not in changed]
            known = {entry.version for entry in kept}
            entries = kept + [Entry(name, version) for version in versions if version not in known]
            self._entries[name] = tuple(sorted(entries, key=lambda entry: int(entry.version), reverse=True))

    def _has_changed(self, entry: Entry) -> bool:
        """Whether the files of a version that is not in memory have changed; it may have been read half copied."""
        was_read = bool(entry.fingerprint) and entry.loaded is None
        return was_read and entry.fingerprint != _fingerprint(self.root / entry.name / entry.version)

    def _replace_entries(self, *entries: Entry) -> None:
        """Replace the entries of the same versions of one model, in one step."""
        name, new = entries[0].name, {entry.version: entry for entry in entries}
        with self._lock:
            self._entries[name] = tuple(new.get(entry.version, entry) for entry in self._entries[name])

    def load_all(self) -> None:
        """Load the versions of each model that are to serve."""
        # Largest first: loaded last, it would keep the others waiting with the remaining threads idle.
        names = sorted(self._entries, key=lambda name: self._graph_bytes(self._entries[name][0]), reverse=True)
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="loader") as pool:
            for loading in [pool.submit(self._load_newest, name) for name in names]:
                loading.result()
        for name in names:
            for model in self._models_in_memory(name):
                _run_example(measure_memory, model)

    def _graph_bytes(self, entry: Entry) -> int:
        graph = self.root / entry.name / entry.version / MODEL
        return graph.stat().st_size if graph.is_file() else 0

    def _load_newest(self, name: str) -> None:
        """Load pending versions: to serve, or, if they need evaluation and another version serves, as the shadow."""
        if self.needs_evaluation(name):
            if not any(entry.model for entry in self._entries[name]):
                self._load_served(name, self._entries[name][1:])
            if any(entry.model for entry in self._entries[name]):
                self._load_shadow(name)
                return
        self._load_served(name, self._entries[name])

    def _load_served(self, name: str, entries: tuple[Entry, ...]) -> None:
        """Load pending versions, newest first, until as many are served as the settings ask for."""
        max_served = self.versions or len(entries)
        served = 0
        for entry in entries:
            is_needed = served < max_served and entry.state is LoadState.PENDING
            current = self._load(entry) if is_needed else entry
            if current is not entry:
                self._replace_entries(current)
            served += current.model is not None
        self._retire_old_versions(name)

    def _load_shadow(self, name: str) -> None:
        """Load the newest loadable version that is newer than the served one, to be evaluated."""
        for entry in self._entries[name]:
            if entry.loaded is not None:
                return
            if entry.state is not LoadState.PENDING:
                continue
            loaded = self._load(entry)
            if loaded.state is LoadState.FAILED:
                self._replace_entries(loaded)
                continue
            with self._lock:  # The event loop may promote the current shadow at any time.
                postponed = [
                    replace(older, state=LoadState.PENDING, loaded=None)
                    for older in self._entries[name]
                    if older.state is LoadState.SHADOW
                ]
                self._replace_entries(replace(loaded, state=LoadState.SHADOW), *postponed)
            return

    def _retire_old_versions(self, name: str) -> None:
        """Mark versions as replaced if enough newer ones are served."""
        with self._lock:
            entries = self._entries[name]
            remaining = self.versions or len(entries)
            updated = []
            for entry in entries:
                is_kept = remaining > 0
                updated.append(entry if is_kept else replace(entry, state=LoadState.REPLACED, loaded=None, error=None))
                remaining -= entry.model is not None
            self._entries[name] = tuple(updated)

    def shadow_of(self, model: Model) -> Model | None:
        """Return the version evaluated against this one; None if there is none or this is not the newest served."""
        entries = self._entries.get(model.manifest.name, ())
        served = next((entry.model for entry in entries if entry.model), None)
        return next((entry.shadow for entry in entries if entry.shadow), None) if served is model else None

    def shadow_models(self) -> Iterator[Model]:
        """Return all versions that are being evaluated."""
        return (entry.shadow for entry in self.entries() if entry.shadow is not None)

    def promote(self, shadow: Model) -> None:
        """Serve a version that passed its evaluation. Does nothing if it is no longer the shadow."""
        with self._lock:
            if entry := self._find_shadow_entry(shadow):
                self._replace_entries(replace(entry, state=LoadState.SERVED))
                self._retire_old_versions(entry.name)

    def roll_back(self, shadow: Model, reason: str) -> None:
        """Unload a version that failed its evaluation; it is not loaded again until its files change."""
        with self._lock:
            if entry := self._find_shadow_entry(shadow):
                self._replace_entries(replace(entry, state=LoadState.FAILED, loaded=None, error=reason))

    def _find_shadow_entry(self, shadow: Model) -> Entry | None:
        return next((entry for entry in self._entries[shadow.manifest.name] if entry.shadow is shadow), None)

    def _load(self, entry: Entry) -> Entry:
        """Return the entry with its model, or with the reason why it cannot be loaded."""
        started = time.perf_counter()
        fingerprint = _fingerprint(self.root / entry.name / entry.version)
        try:
            model = self._load_model(entry)
        except Exception as error:  # A broken model folder, however it is broken, must not affect other models.
            is_expected = isinstance(error, BrokenModel | BackendError | OSError)
            reason = str(error) if is_expected else f"{type(error).__name__}: {error}"
            fields: dict[str, Any] = {"model": entry.name, "version": entry.version, "reason": reason}
            _LOG.error("model unavailable", extra={"fields": fields}, exc_info=None if is_expected else error)
            return replace(entry, state=LoadState.FAILED, error=reason, fingerprint=fingerprint)
        seconds = time.perf_counter() - started
        self.on_loaded(entry.name, entry.version, seconds)
        fields = {"model": entry.name, "version": entry.version, "seconds": round(seconds, 3)}
        fields |= {"device": model.pipeline.device, "batch_limit": model.pipeline.batch_limit}
        _LOG.info("model ready", extra={"fields": fields})
        return replace(entry, state=LoadState.SERVED, loaded=model, fingerprint=fingerprint)

    def _load_model(self, entry: Entry) -> Model:
        """Load a version, verify it on its goldens, and warm it up. Raises BrokenModel, BackendError or OSError."""
        folder = self.root / entry.name / entry.version
        manifest = read_manifest(folder)
        if (manifest.name, manifest.version) != (entry.name, entry.version):
            raise BrokenModel(
                f"The manifest belongs to {manifest.name}/{manifest.version}: "
                f"its 'name' and 'version' must be {entry.name} and {entry.version}."
            )
        verify_files(folder, manifest)
        task = manifest.load_task(folder)
        goldens = read_goldens(folder)
        if not goldens:
            raise BrokenModel("There are no golden requests, so the model cannot be verified.")
        backend = self._open_shared_backend(folder, manifest, task)
        verification = verify(manifest, task, backend, goldens)
        card = (folder / CARD).read_text("utf-8") if CARD in manifest.files else ""
        pipeline = self.make_pipeline(entry.name, task, backend, verification.golden_runs)
        model = Model(manifest, task, pipeline, goldens, card, verification.deviation)
        # Requests in progress hold a reference: the pipeline is closed when the entry and the last request drop theirs.
        finalize(model, self.on_retired, pipeline).atexit = False
        return model

    def _open_shared_backend(self, folder: Path, manifest: Manifest, task: Task) -> Backend:
        """Open the graph, or return the one in memory if another version, of any model, has the same file.

        Such versions differ in their task only: for example in the table of items for the same network.
        """
        key = (manifest.files[MODEL].sha256, task.inputs, task.outputs)
        with self._graph_locks.setdefault(key, Lock()):
            backend = self._backends.get(key)
            if backend is None:
                backend = self.open_backend((folder / MODEL).read_bytes(), task.inputs, task.outputs)
                self._backends[key] = backend
        return backend

    def find(self, name: str, version: str | None = None) -> Model:
        """Return a model, by default its newest served version. Raises ModelNotFound or ModelUnavailable."""
        entries = self._entries.get(name)
        if entries is None:
            names = ", ".join(self._entries) or "none"
            raise ModelNotFound(f"Model '{name[:64]}' does not exist. Available models: {names}.")
        if version is not None and not any(entry.version == version for entry in entries):
            versions = ", ".join(entry.version for entry in entries)
            raise ModelNotFound(f"{name} has no version '{version[:16]}'. Available versions: {versions}.")
        candidates = [entry for entry in entries if version in (None, entry.version)]
        if candidates[0].state is LoadState.REPLACED:
            raise ModelNotFound(f"{name}/{version} is no longer served: a newer version replaced it.")
        for entry in candidates:
            if entry.model is not None:
                return entry.model
        message = f"{name}/{candidates[0].version} is not served: {candidates[0].reason}"
        raise ModelUnavailable(message, retry_after_s=None if self.loaded else 1)

    def close(self) -> None:
        """Drop all models."""
        with self._lock:
            self._entries = {}

    def entries(self) -> Iterator[Entry]:
        """Yield every version of every model, by name, newest first."""
        for entries in list(self._entries.values()):  # A copy: the loader may add a model during iteration.
            yield from entries

    def versions_of(self, name: str) -> tuple[Entry, ...]:
        """Return all versions of a model, newest first. Raises ModelNotFound."""
        if name not in self._entries:
            self.find(name)
        return self._entries[name]

    def served_models(self) -> Iterator[Model]:
        """Return all versions that are served."""
        return (entry.model for entry in self.entries() if entry.model is not None)


def _fingerprint(folder: Path) -> Fingerprint:
    try:
        stats = [(path.name, path.stat()) for path in folder.iterdir()]
    except OSError:
        return frozenset()
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _run_example(step: Callable[[Pipeline, Mapping[str, Any]], None], model: Model) -> None:
    """Run a step on the model's example. An error is logged only: the model may still answer other requests."""
    try:
        step(model.pipeline, model.example)
    except Exception:
        _LOG.exception("%s failed", step.__name__, extra={"fields": {"model": model.manifest.name}})
