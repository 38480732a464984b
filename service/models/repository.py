"""The model repository: loads and verifies the versions that a folder contains, and keeps those that are served.

    <root>/<name>/<version>/manifest.json

What is there is what is served: a version that is added is loaded, and one that is removed is no longer served;
requests in progress finish. A version that cannot be read, differs from what was published, or does not reproduce its
golden answers is listed with the reason and is never served. Other versions are not affected. If the newest version
fails or is removed, the one before it is served. `selection.py` decides which versions are needed.

Threads: versions are loaded, and the folder is looked at, in one thread at a time, the loader. The event loop promotes
and rolls back shadow versions. Both change entries under a lock; readers take none.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock, RLock
from typing import Any
from weakref import WeakValueDictionary

from service.backends.base import Backend, BackendError, OpenBackend
from service.engine.latency import shape_of
from service.engine.pipeline import Pipeline
from service.engine.scheduler import HungRun
from service.errors import Conflict, ModelNotFound, ModelRejected, ModelUnavailable
from service.models import selection
from service.models.device_work import DeviceWork, Submit, run_directly
from service.models.discovery import FoundVersion, ModelFolder
from service.models.leases import Leases
from service.models.model import Choice, Entry, Fingerprint, LoadState, Model
from service.models.precision import PrecisionPolicy
from service.models.selection import Rule
from service.models.verification import GoldenRun, verify
from service.models.warmup import measure_memory, rerun_example
from tasks.contract import Problem, Task, TensorSpec, count_samples
from tasks.goldens import parse_goldens
from tasks.manifest import (
    CARD,
    MODEL,
    BrokenModel,
    Manifest,
    UnreadableModel,
    Variant,
    graph_and_goldens,
    read_files,
    read_manifest,
)

_LOG = logging.getLogger(__name__)
_MAX_REASONS = 10
"""Number of versions for which an error states why they are not served."""

_GraphKey = tuple[str, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""The SHA-256 of a graph's file, and the inputs and outputs it is opened with."""
MakePipeline = Callable[[str, str, Task, Backend, Sequence[GoldenRun], DeviceWork], Pipeline]
"""Makes the pipeline of a task and a backend, and warms it up."""
_Versions = tuple[Entry, ...]
"""The versions of a model, newest first."""


@dataclass
class Repository:
    """Finds models and holds those that are served.

    Attributes:
        root: the folder of models.
        versions: number of newest versions to serve per model; 0 for all.
        open_backend: the runtime.
        make_pipeline: makes the pipeline of a task and a backend.
        concurrency: number of models loaded at a time.
        pins: the only version to serve, for the models that have one here.
        only: names of the models to serve; empty for all.
        submit_to: returns how work is run on the named device.
        on_loaded: called with name, version and seconds when a version has been loaded.
        on_failed: called with name and version when a version is found broken or fails to load.
        on_removed: called with name and version when a version is no longer in the folder.
        needs_evaluation: whether new versions of the named model are evaluated on shadow traffic before they serve.
        precision: which graph of a version to run.
        check_memory: called with the size of a graph before it is opened; raises BrokenModel if it does not fit.
        on_retired: called with the pipeline of a version that is no longer served when its last lease has ended, in any
            thread.
        graph_file: the file of a version that the runtime opens.
        loaded: whether all models have been loaded or have failed; set by the caller of `load_all`.
    """

    root: Path
    versions: int
    open_backend: OpenBackend
    make_pipeline: MakePipeline
    concurrency: int = 1
    pins: Mapping[str, str] = field(default_factory=dict)
    only: frozenset[str] = frozenset()
    submit_to: Callable[[str], Submit] = lambda device: run_directly
    on_loaded: Callable[[str, str, float], None] = lambda name, version, seconds: None
    on_failed: Callable[[str, str], None] = lambda name, version: None
    on_removed: Callable[[str, str], None] = lambda name, version: None
    needs_evaluation: Callable[[str], bool] = lambda name: False
    precision: PrecisionPolicy = PrecisionPolicy()
    check_memory: Callable[[int], None] = lambda graph_bytes: None
    on_retired: Callable[[Pipeline], None] = Pipeline.close
    graph_file: str = MODEL
    loaded: bool = field(default=False, init=False)
    _entries: dict[str, _Versions] = field(default_factory=dict, init=False)
    """Each tuple is replaced as a whole, so that readers see the state before or after a change."""
    _defaults: dict[str, Model] = field(default_factory=dict, init=False)
    """The version of each model that answers requests which name none; it follows from the entries."""
    _lock: RLock = field(default_factory=RLock, init=False)
    """Held while entries are changed."""
    _folder: ModelFolder = field(init=False)
    _folder_problem: str | None = field(default=None, init=False)
    """Why the folder of models could not be read by the last rescan."""
    _graph_locks: dict[_GraphKey, Lock] = field(default_factory=dict, init=False)
    _backends: WeakValueDictionary[_GraphKey, Backend] = field(default_factory=WeakValueDictionary, init=False)
    """Open graphs, for as long as a model uses them."""

    def __post_init__(self) -> None:
        self._folder = ModelFolder(self.root, self.only)

    # What the folder contains

    def scan(self) -> None:
        """List the versions in the folder without loading them. Raises UnreadableModel if the folder cannot be read."""
        found = self._folder.look()
        for name, versions in found.models.items() if found else ():
            self._update_entries(name, versions)

    def rescan(self) -> bool:
        """Follow the changes of the folder since the last scan; return whether a version has been loaded.

        A new version replaces its predecessor as soon as it is verified. A version whose folder is gone is no longer
        served. If the folder of models cannot be read, everything stays as it is.
        """
        try:
            found = self._folder.look()
        except UnreadableModel as error:
            self._report_folder_problem(str(error))
            return False
        if found is None:
            self._report_folder_problem(
                f"The folder of models is another one than before, and empty: {self.root}. Is its volume mounted?"
            )
            return False
        self._report_folder_problem(None)
        for name in self._entries.keys() - found.models.keys() - found.unreadable:
            self._update_entries(name, ())
        has_loaded = [self._follow(name, versions) for name, versions in found.models.items()]
        self._graph_locks.clear()
        return any(has_loaded)

    def _report_folder_problem(self, problem: str | None) -> None:
        if problem is not None and problem != self._folder_problem:
            _LOG.error("folder of models unusable; served models stay", extra={"fields": {"reason": problem}})
        self._folder_problem = problem

    def _follow(self, name: str, versions: Sequence[FoundVersion]) -> bool:
        """Bring a model in line with the versions found; return whether a version has been loaded."""
        found = {version.version for version in versions if version.problem is None or not version.is_readable}
        has_loaded = self._load_successor(name, lambda entry: entry.version in found)
        self._update_entries(name, versions)
        return self._settle(name) or has_loaded

    def _load_successor(self, name: str, stays: Callable[[Entry], bool]) -> bool:
        """If the default does not stay, load the version that takes its place, so that requests find either of them.

        Returns whether a version has been loaded.
        """
        entries, default = self._entries.get(name, ()), self.default_of(name)
        if default is None or any(entry.model is default and stays(entry) for entry in entries):
            return False
        for entry in selection.in_order_of_preference([e for e in entries if stays(e)], self._rule(name)):
            if entry.loaded is not None:
                return False
            if entry.can_be_loaded:
                loaded = self._load(entry)
                self._replace_entries(loaded)
                if loaded.loaded is not None:
                    return True
        return False

    def _update_entries(self, name: str, versions: Sequence[FoundVersion]) -> None:
        """List exactly the versions found: new ones and those whose files have changed as pending."""
        known = {entry.version: entry for entry in self._entries.get(name, ())}
        updated = {
            found.version: self._update_entry(known.get(found.version) or Entry(name, found.version), found)
            for found in versions
        }
        with self._lock:
            # The event loop may have promoted or rolled back a version meanwhile.
            current = {entry.version: entry for entry in self._entries.get(name, ())}
            for version in updated.keys() & known.keys():
                if current[version] is not known[version] and updated[version] is known[version]:
                    updated[version] = current[version]
            for removed in sorted(known.keys() - updated.keys(), key=int):
                level = logging.WARNING if removed == self.pins.get(name) else logging.INFO
                _LOG.log(level, "version removed", extra={"fields": {"model": name, "version": removed}})
                self.on_removed(name, removed)
            self._set_entries(name, sorted(updated.values(), key=lambda entry: entry.number, reverse=True))

    def _update_entry(self, entry: Entry, found: FoundVersion) -> Entry:
        if found.problem is not None:
            if entry.loaded is not None and not found.is_readable:
                return entry
            if (entry.state, entry.explanation) == (LoadState.FAILED, found.problem):
                return entry
            self.on_failed(entry.name, entry.version)
            failed = Entry(entry.name, entry.version, LoadState.FAILED, explanation=found.problem)
            return replace(failed, choice=entry.choice)
        if entry.loaded is None and entry.state is not LoadState.PENDING and self._has_changed(entry):
            return replace(entry, state=LoadState.PENDING, fingerprint=frozenset())
        return entry

    def _has_changed(self, entry: Entry) -> bool:
        """Whether the files of a version have changed since it was loaded, or since this failed.

        It may have been read half copied, or could not be read.
        """
        if not entry.fingerprint and entry.state is not LoadState.FAILED:
            return False
        return entry.fingerprint != _fingerprint(self.root / entry.name / entry.version)

    def _set_entries(self, name: str, entries: Sequence[Entry]) -> None:
        """Replace the versions of a model, or remove it if there are none; retire what is no longer in memory."""
        with self._lock:
            before = self._entries.get(name, ())
            default, default_before = selection.default_model(entries, self._rule(name)), self._defaults.get(name)
            if entries:
                self._entries[name] = tuple(entries)
            else:
                self._entries.pop(name, None)
            if default is not None:
                self._defaults[name] = default
            else:
                self._defaults.pop(name, None)
            if self.loaded and entries and default is not default_before:
                self._log_default(name, default)
        kept = {id(entry.loaded) for entry in entries}
        for entry in before:
            if entry.loaded is not None and id(entry.loaded) not in kept:
                entry.loaded.leases.retire()

    @staticmethod
    def _log_default(name: str, default: Model | None) -> None:
        version = default.manifest.version if default else None
        _LOG.info("default version changed", extra={"fields": {"model": name, "version": version}})

    def _replace_entries(self, *entries: Entry) -> None:
        """Replace the entries of the same versions of one model, in one step."""
        name, new = entries[0].name, {entry.version: entry for entry in entries}
        with self._lock:
            self._set_entries(name, [new.get(entry.version, entry) for entry in self._entries.get(name, ())])

    # Loading

    def load_all(self) -> None:
        """Load the versions of each model that are to serve."""
        # Largest first: loaded last, it would keep the others waiting with the remaining threads idle.
        names = sorted(self._entries, key=lambda name: self.graph_bytes(self._entries[name][0]), reverse=True)
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="loader") as pool:
            for loading in [pool.submit(self._load_needed, name) for name in names]:
                loading.result()
        self._graph_locks.clear()
        for name in names:
            for model in self._models_in_memory(name):
                _run_example(measure_memory, model, DeviceWork())

    def graph_bytes(self, entry: Entry) -> int:
        """Return the size of a version's graph; 0 if it cannot be read."""
        try:
            return (self.root / entry.name / entry.version / self.graph_file).stat().st_size
        except OSError:
            return 0

    def newest_entries(self) -> Iterator[Entry]:
        """Return the newest version of each model."""
        return (entries[0] for entries in list(self._entries.values()) if entries)

    def _settle(self, name: str) -> bool:
        """Load what is needed of a model now; return whether a version has been loaded."""
        before = list(self._models_in_memory(name))
        if name in self._entries:
            self._load_needed(name)
        new = [model for model in self._models_in_memory(name) if not any(model is known for known in before)]
        for model in new:
            work = self._device_work(name, model.pipeline.backend)
            _run_example(measure_memory, model, work)
            _run_example(rerun_example, model, work)
        return bool(new)

    def _models_in_memory(self, name: str) -> Iterator[Model]:
        return (entry.loaded for entry in self._entries.get(name, ()) if entry.loaded is not None)

    def _rule(self, name: str) -> Rule:
        return Rule(self.versions, self.pins.get(name))

    def _load_needed(self, name: str) -> None:
        """Load the versions that are to serve and, if new versions need evaluation, the newest one as the shadow."""
        entries, rule = self._entries[name], self._rule(name)
        evaluates = self.needs_evaluation(name) and not selection.holds_choice(entries, rule)
        served = [entry.number for entry in entries if entry.model and entry.choice is not Choice.LOADED_BESIDE]
        newest_served = max(served, default=entries[0].number - 1)
        self._load_served(name, newest_served if evaluates else entries[0].number)
        if evaluates and any(entry.model for entry in self._entries[name]):
            self._load_shadow(name)
        elif evaluates:
            self._load_served(name, entries[0].number)

    def _load_served(self, name: str, newest: int) -> None:
        """Load versions up to number `newest`, preferred ones first, until as many serve as the settings ask for."""
        rule, served = self._rule(name), 0
        for entry in selection.in_order_of_preference(self._entries[name], rule):
            if entry.number > newest:
                continue
            current = entry
            if selection.is_needed(entry, served, rule) and entry.can_be_loaded:
                current = self._load(entry)
                self._replace_entries(current)
            elif selection.is_needed(entry, served, rule) and entry.shadow is not None:
                current = self._serve_shadow(entry)
            served += current.model is not None
        self._replace_unneeded(name)

    def _serve_shadow(self, entry: Entry) -> Entry:
        """Serve a shadow version, which is evaluated no longer; the event loop may have decided on it meanwhile."""
        with self._lock:
            current = self._entry(entry.name, entry.version) or entry
            if current.shadow is not None:
                current = replace(current, state=LoadState.SERVED)
                self._replace_entries(current)
            return current

    def _load_shadow(self, name: str) -> None:
        """Load the newest loadable version that is newer than the served one, to be evaluated."""
        for entry in self._entries[name]:
            if entry.choice in (Choice.LOADED_BESIDE, Choice.UNLOADED):
                continue
            if entry.loaded is not None:
                return
            if not entry.can_be_loaded:
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

    def _replace_unneeded(self, name: str) -> None:
        """Mark versions as replaced if enough preferred ones are served."""
        with self._lock:
            self._set_entries(name, selection.replace_unneeded(self._entries[name], self._rule(name)))

    def _load(self, entry: Entry) -> Entry:
        """Return the entry with its model, or with the reason why it cannot be loaded."""
        started = time.perf_counter()
        fingerprint = _fingerprint(self.root / entry.name / entry.version)
        fields: dict[str, Any] = {"model": entry.name, "version": entry.version}
        try:
            model = self._load_model(entry)
        except Exception as error:  # A broken model folder, however it is broken, must not affect other models.
            self.on_failed(entry.name, entry.version)
            is_expected = isinstance(error, BrokenModel | BackendError | HungRun)
            reason = str(error) if is_expected else f"{type(error).__name__}: {error}"
            if reason != entry.explanation:
                trace = None if is_expected else error
                _LOG.error("model unavailable", extra={"fields": fields | {"reason": reason}}, exc_info=trace)
            if isinstance(error, UnreadableModel):
                fingerprint = frozenset()  # The next rescan tries again.
            return replace(entry, state=LoadState.FAILED, explanation=reason, fingerprint=fingerprint)
        seconds = time.perf_counter() - started
        self.on_loaded(entry.name, entry.version, seconds)
        fields |= {"seconds": round(seconds, 3), "device": model.pipeline.device, "precision": model.precision}
        _LOG.info("model ready", extra={"fields": fields | {"batch_limit": model.pipeline.batch_limit}})
        return replace(entry, state=LoadState.SERVED, loaded=model, explanation=None, fingerprint=fingerprint)

    def _load_model(self, entry: Entry) -> Model:
        """Load a version, verify it on its goldens, and warm it up. Raises BrokenModel, BackendError and HungRun."""
        folder = self.root / entry.name / entry.version
        manifest = read_manifest(folder)
        if (manifest.name, manifest.version) != (entry.name, entry.version):
            raise BrokenModel(
                f"The manifest belongs to {manifest.name}/{manifest.version}: "
                f"its 'name' and 'version' must be {entry.name} and {entry.version}."
            )
        if self.graph_file not in manifest.files:
            raise BrokenModel(
                f"There is no {self.graph_file}. Publish the model with it, or start the server with another --backend."
            )
        for variant in self.precision.variants_of(manifest):
            contents = read_files(folder, manifest, variant)
            try:
                return self._load_graph(entry, manifest, variant, contents)
            except HungRun:
                raise  # The device, and not the variant.
            except Exception as error:  # Whatever is wrong with it, outputs that are no numbers included.
                # It was made for another processor or runtime, perhaps; the version itself may well work here.
                fields = {"model": entry.name, "version": entry.version, "precision": variant.precision}
                _LOG.warning("variant unusable; fp32 serves instead", extra={"fields": fields | {"reason": str(error)}})
        return self._load_graph(entry, manifest, None, read_files(folder, manifest))

    def _load_graph(
        self, entry: Entry, manifest: Manifest, variant: Variant | None, contents: dict[str, bytes]
    ) -> Model:
        """Load one of a version's graphs from the contents of its files, which are emptied to save memory."""
        graph_file, goldens_file = graph_and_goldens(variant)
        if variant is None:
            graph_file = self.graph_file
        task = manifest.build_task(contents)
        goldens = parse_goldens(contents[goldens_file], goldens_file)
        if not goldens:
            raise BrokenModel("There are no golden requests, so the model cannot be verified.")
        self.check_memory(len(contents[graph_file]))
        card = contents.get(CARD, b"").decode("utf-8", "replace")
        backend = self._open_shared_backend(contents.pop(graph_file), manifest.files[graph_file].sha256, task)
        contents.clear()  # Large, and no longer needed.
        work = self._device_work(entry.name, backend)
        verification = verify(manifest.of_variant(variant), task, backend, goldens, work)
        pipeline = self.make_pipeline(entry.name, entry.version, task, backend, verification.golden_runs, work)
        leases = Leases(partial(self.on_retired, pipeline))
        return Model(manifest, task, pipeline, goldens, card, verification.deviation, leases, variant)

    def _device_work(self, name: str, backend: Backend) -> DeviceWork:
        """Return how work is run for a new version; until it is measured, it counts as large as the one that serves."""
        submit, served = self.submit_to(backend.device), self.default_of(name)
        if served is None:
            return DeviceWork(submit)
        profile = served.pipeline.latency_profile
        return DeviceWork(submit, lambda arrays: profile.memory_bytes(shape_of(arrays), count_samples(arrays)))

    def _open_shared_backend(self, graph: bytes, sha256: str, task: Task) -> Backend:
        """Open the graph, or return the one in memory if another version, of any model, has the same file.

        Such versions differ in their task only: for example in the table of items for the same network.
        """
        key = (sha256, task.inputs, task.outputs)
        with self._graph_locks.setdefault(key, Lock()):
            backend = self._backends.get(key)
            if backend is None:
                backend = self.open_backend(graph, task.inputs, task.outputs)
                self._backends[key] = backend
        return backend

    # What an operator chooses; called in the loader

    def load_version(self, name: str, version: str) -> Entry:
        """Serve a version in addition to those that the settings ask for; it does not become the default.

        Raises ModelNotFound, Conflict if another version is pinned, and ModelRejected if it cannot be loaded.
        """
        entry = self._find_choosable(name, version)
        if entry.model is None:
            self._load_chosen(entry)
        return self._settled_and_served(name, version)

    def promote_version(self, name: str, version: str) -> Entry:
        """Make a version the default; it is loaded if necessary. `selection.promote` says for how long.

        Raises ModelNotFound, Conflict if another version is pinned, and ModelRejected if it cannot be loaded.
        """
        entry = self._find_choosable(name, version)
        if entry.model is None:
            self._load_chosen(entry)
        with self._lock:
            self._set_entries(name, selection.promote(self._entries[name], version))
        return self._settled_and_served(name, version)

    def unload_version(self, name: str, version: str) -> Entry:
        """Stop serving a version, and do not load it again. Raises ModelNotFound, and Conflict if it is pinned."""
        entry = self._find_choosable(name, version)
        if self._rule(name).pinned is not None:
            raise Conflict(
                f"{name} is pinned to version {version} by --pin. Restart the server without it to unload it."
            )
        self._load_successor(name, lambda other: other is not entry)
        self._choose(entry, Choice.UNLOADED)
        return self._settled(name, version)

    def choices(self) -> dict[str, dict[str, str]]:
        """Return what operators have chosen, by model and version; nothing for those that the settings decide."""
        chosen = [entry for entry in self.entries() if entry.choice is not Choice.AUTOMATIC]
        return {
            name: {entry.version: entry.choice.value for entry in chosen if entry.name == name}
            for name in {entry.name for entry in chosen}
        }

    def restore_choices(self, choices: Mapping[str, Mapping[str, str]]) -> None:
        """Make the choices of operators those that `choices` returned, here earlier or in another process.

        What cannot be loaded is logged and listed with the reason, as at start.
        """
        for name in list(self._entries):
            wanted = choices.get(name, {})
            with self._lock:
                entries = self._entries.get(name, ())
                restored = [replace(e, choice=Choice(wanted.get(e.version, Choice.AUTOMATIC))) for e in entries]
                if [entry.choice for entry in restored] == [entry.choice for entry in entries]:
                    continue
                self._set_entries(name, restored)
            self._replace_unneeded(name)
            self._settle(name)
        self._graph_locks.clear()

    def _find_choosable(self, name: str, version: str) -> Entry:
        self.versions_of(name)
        entry, pinned = self._entry(name, version), self._rule(name).pinned
        if entry is None:
            raise self._unknown_version(name, version)
        if pinned not in (None, version):
            raise Conflict(
                f"{name} is pinned to version {pinned} by --pin. Restart the server without it to change this."
            )
        return entry

    def _load_chosen(self, entry: Entry) -> None:
        """Serve a version that an operator asks for, even if loading it has failed before. Raises ModelRejected.

        It does not become the default, unless there is none.
        """
        default = self.default_of(entry.name)
        is_newer = default is not None and entry.number > int(default.manifest.version)
        choice = Choice.LOADED_BESIDE if is_newer else Choice.LOADED
        with self._lock:
            current = self._entry(entry.name, entry.version) or entry
            if current.shadow is not None:  # Its evaluation ends here.
                self._replace_entries(replace(current, state=LoadState.SERVED, choice=choice))
                return
        loaded = self._load(entry)
        if loaded.loaded is None:
            self._replace_entries(loaded)
            raise ModelRejected(f"{entry.name}/{entry.version} cannot be served: {loaded.explanation}")
        self._replace_entries(replace(loaded, choice=choice))

    def _choose(self, entry: Entry, choice: Choice) -> None:
        with self._lock:
            current = self._entry(entry.name, entry.version)
            if current is not None:
                self._replace_entries(replace(current, choice=choice))

    def _settled_and_served(self, name: str, version: str) -> Entry:
        entry = self._settled(name, version)
        if entry.model is None:
            raise ModelRejected(f"{name}/{version} is not served: {entry.reason}")
        return entry

    def _settled(self, name: str, version: str) -> Entry:
        """Bring the model in line with a choice, and return the version's entry."""
        self._replace_unneeded(name)
        self._settle(name)
        self._graph_locks.clear()
        entry = self._entry(name, version)
        if entry is None:
            raise self._unknown_version(name, version)
        return entry

    # Shadow versions; called in the event loop

    def shadow_of(self, model: Model) -> Model | None:
        """Return the version evaluated against this one; None if there is none or this is not the default."""
        name = model.manifest.name
        entries = self._entries.get(name, ())
        shadow = next((entry.shadow for entry in entries if entry.shadow), None)
        return shadow if shadow is not None and self.default_of(name) is model else None

    def shadow_models(self) -> Iterator[Model]:
        """Return all versions that are being evaluated."""
        return (entry.shadow for entry in self.entries() if entry.shadow is not None)

    def promote(self, shadow: Model) -> None:
        """Serve a version that passed its evaluation. Does nothing if it is no longer the shadow."""
        with self._lock:
            if entry := self._find_shadow_entry(shadow):
                self._replace_entries(replace(entry, state=LoadState.SERVED))
                self._replace_unneeded(entry.name)

    def roll_back(self, shadow: Model, reason: str) -> None:
        """Unload a version that failed its evaluation; it is not loaded again until its files change."""
        with self._lock:
            if entry := self._find_shadow_entry(shadow):
                self._replace_entries(replace(entry, state=LoadState.FAILED, loaded=None, explanation=reason))

    def reject(self, name: str, version: str, sha256: str, reason: str) -> None:
        """Do not serve a version that was rolled back elsewhere, and serve what does instead. In the loader's thread.

        `sha256` is that of its graph; if the version has another one here, nothing happens.
        """
        with self._lock:
            entry = self._entry(name, version)
            if entry is None or entry.state is LoadState.FAILED:
                return
            folder = self.root / name / version
            manifest = entry.loaded.manifest if entry.loaded is not None else read_manifest(folder)
            if manifest.files[MODEL].sha256 != sha256:
                return
            fingerprint = entry.fingerprint or _fingerprint(folder)
            self._replace_entries(
                replace(entry, state=LoadState.FAILED, loaded=None, explanation=reason, fingerprint=fingerprint)
            )
        self._settle(name)

    def _find_shadow_entry(self, shadow: Model) -> Entry | None:
        entries = self._entries.get(shadow.manifest.name, ())
        return next((entry for entry in entries if entry.shadow is shadow), None)

    # Reading

    @contextmanager
    def lease(self, name: str, version: str | None = None) -> Iterator[Model]:
        """Yield a model as `find` returns it; it stays usable in the `with` block, even if it is replaced meanwhile."""
        model = self.acquire(name, version)
        with model.leases:
            yield model

    def acquire(self, name: str, version: str | None = None) -> Model:
        """Return a model as `find` returns it, with a lease that the caller ends by `model.leases.release()`."""
        model = self.find(name, version)
        while not model.leases.try_acquire():  # It was replaced in this very moment.
            model = self.find(name, version)
        return model

    def find(self, name: str, version: str | None = None) -> Model:
        """Return a model, by default the version preferred by the settings and the operator.

        Raises ModelNotFound or ModelUnavailable.
        """
        entries = self.versions_of(name)
        if version is None:
            model = self.default_of(name)
            if model is not None:
                return model
            raise ModelUnavailable(
                self._why_unavailable(name, entries),
                details=_reasons(entries) if len(entries) > 1 else (),
                retry_after_s=None if self.loaded else 1,
            )
        entry = next((entry for entry in entries if entry.version == version), None)
        if entry is None:
            raise self._unknown_version(name, version)
        if entry.model is not None:
            return entry.model
        if entry.state is LoadState.REPLACED:
            if entry.explanation is not None:
                raise ModelNotFound(f"{name}/{version} is not served. {entry.explanation}")
            raise ModelNotFound(f"{name}/{version} is no longer served: a newer version replaced it.")
        message = f"{name}/{version} is not served: {entry.reason}"
        raise ModelUnavailable(message, retry_after_s=None if self.loaded else 1)

    def _why_unavailable(self, name: str, entries: Sequence[Entry]) -> str:
        rule = self._rule(name)
        preferred = next(iter(selection.in_order_of_preference(entries, rule)), None)
        if preferred is None and rule.pinned is not None:
            return f"{name} is not served: the setting --pin selects version {rule.pinned}, which is not there."
        preferred = preferred or entries[0]
        return f"{name}/{preferred.version} is not served: {preferred.reason}"

    def unavailable_models(self) -> dict[str, str]:
        """Return, for each model of which no version is served, the reason in a sentence."""
        models = list(self._entries.items())  # A copy: the loader may add a model during iteration.
        return {name: self._why_unavailable(name, entries) for name, entries in models if not self.default_of(name)}

    def _unknown_version(self, name: str, version: str) -> ModelNotFound:
        versions = ", ".join(entry.version for entry in self._entries.get(name, ())) or "none"
        return ModelNotFound(f"{name} has no version '{version[:16]}'. Available versions: {versions}.")

    def default_of(self, name: str) -> Model | None:
        """Return the version that answers requests which name none; None if no version is served."""
        return self._defaults.get(name)

    def close(self) -> None:
        """Drop all models."""
        for name in list(self._entries):
            self._set_entries(name, ())

    def entries(self) -> Iterator[Entry]:
        """Yield every version of every model, by name, newest first."""
        for entries in list(self._entries.values()):  # A copy: the loader may add a model during iteration.
            yield from entries

    def _entry(self, name: str, version: str) -> Entry | None:
        return next((entry for entry in self._entries.get(name, ()) if entry.version == version), None)

    def versions_of(self, name: str) -> tuple[Entry, ...]:
        """Return all versions of a model, newest first. Raises ModelNotFound."""
        entries = self._entries.get(name)
        if entries is None:
            names = ", ".join(list(self._entries)) or "none"
            raise ModelNotFound(f"Model '{name[:64]}' does not exist. Available models: {names}.")
        return entries

    def served_models(self) -> Iterator[Model]:
        """Return all versions that are served."""
        return (entry.model for entry in self.entries() if entry.model is not None)

    def default_models(self) -> Iterator[Model]:
        """Return, for each model that is served, the version that answers requests which name none."""
        return iter(list(self._defaults.values()))


def _reasons(entries: Sequence[Entry]) -> tuple[Problem, ...]:
    """Return why versions are not served, for the newest ones."""
    return tuple(
        Problem(f"versions.{entry.version}", entry.state.value, entry.reason or "") for entry in entries[:_MAX_REASONS]
    )


def _fingerprint(folder: Path) -> Fingerprint:
    try:
        stats = [(path.name, path.stat()) for path in folder.iterdir()]
    except OSError:
        return frozenset()
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _run_example(
    step: Callable[[Pipeline, Mapping[str, Any], DeviceWork], None], model: Model, work: DeviceWork
) -> None:
    """Run a step on the model's example. An error is logged only: the model may still answer other requests."""
    try:
        step(model.pipeline, model.example, work)
    except Exception:
        _LOG.exception("%s failed", step.__name__, extra={"fields": {"model": model.manifest.name}})
