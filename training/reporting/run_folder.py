"""Run folders, where a training run keeps its checkpoints, history and report, and how to find them again."""

import csv
import hashlib
import io
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.contract import files_of, parameters_of
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.files import write_file
from training.core.provenance import code_version
from training.core.recipe import Recipe
from training.core.results import EpochLog
from training.core.settings_file import SETTINGS
from training.engine.learner import Learner
from training.engine.runtime import Runtime

_DONE, _LOCK, _CODE = "done.json", ".lock", "code.txt"
_PUBLISHED = "published.txt"
_MAX_DIFFERENCES = 4
_OTHER_FACTS = {
    "parameters": "other labels, columns or sizes of the task",
    "data": "other data",
}
"""What hashes in a fingerprint stand for."""
_UNRECORDED = "an older version of this program did not record"
SETTINGS_WITHOUT_EFFECT = ("workers", "threads", "checkpoint_steps", "device", "cache_mb")
"""Settings that change how long a run takes, but not its result."""


@dataclass(frozen=True)
class Plan:
    """All that determines the result of a run."""

    recipe: Recipe
    settings: Settings
    options: Any
    command: str

    def fingerprint(self, learner: Learner, runtime: Runtime, data_sha256: str) -> dict[str, Any]:
        """Return the values that must be equal for a run to be resumed."""
        values = {**asdict(self.settings), **asdict(self.options), "precision": runtime.precision}
        task = json.dumps({**parameters_of(learner.task), **files_of(learner.task)}, sort_keys=True)
        return {
            "recipe": self.recipe.name,
            "task": self.recipe.task,
            "device": runtime.device.type,
            "processes": runtime.world_size,
            "samples": len(learner.samples),
            "data": data_sha256,
            "parameters": hashlib.sha256(task.encode()).hexdigest(),
            **{
                name: list(value) if isinstance(value, tuple) else value
                for name, value in values.items()
                if name not in SETTINGS_WITHOUT_EFFECT
            },
        }


def find_or_create(root: Path, fingerprint: dict[str, Any], resume: str) -> Path:
    """Return the folder of the latest run with this fingerprint, or a new one.

    `resume` is `auto` (resume an unfinished run), `publish` (or a finished one that was not published), `always` (or a
    finished one; raises CannotTrain if there is none), `keep` (or a finished one; a new folder if there is none) or
    `never`.
    """
    existing = _find(root, fingerprint, resume)
    if existing:
        return existing
    if resume == "always":
        raise CannotTrain(f"No run in {root} has these settings and this data; omit --resume to start one.")
    folder = _create(root)
    try:
        write_file(folder / _CODE, code_version() + "\n")
        write_file(folder / SETTINGS, json.dumps(fingerprint, indent=1) + "\n")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _find(root: Path, fingerprint: dict[str, Any], resume: str) -> Path | None:
    for folder in _latest_first(root) if resume != "never" else ():
        if _read_json(folder / SETTINGS) != fingerprint or _is_running(folder):
            continue
        is_finished = (folder / _DONE).exists()
        is_published = (folder / _PUBLISHED).exists()
        if resume in ("always", "keep") or not is_finished or (resume == "publish" and not is_published):
            return folder
    return None


def _latest_first(root: Path) -> list[Path]:
    return sorted(root.glob("*/"), reverse=True)


def describe_start(root: Path, fingerprint: dict[str, Any], resume: str, epochs: int) -> str:
    """Say which run is resumed, or why the last one is not; empty if there is nothing to say.

    To be called before `find_or_create`, with the same arguments and the number of epochs of each seed.
    """
    folder = _find(root, fingerprint, resume)
    if folder and resume == "keep" and (folder / _DONE).exists():
        return f"The run {folder} is finished."
    if folder:
        return _describe_resumed(folder, epochs * int(fingerprint.get("seeds", 1)))
    settings = ((folder, _read_json(folder / SETTINGS)) for folder in _latest_first(root))
    earlier = [(folder, values) for folder, values in settings if isinstance(values, dict)]
    if resume == "never" or not earlier:
        return ""
    if any(values == fingerprint and _is_running(folder) for folder, values in earlier):
        return "A new run: another process is training the last one with these settings."
    for folder, values in earlier:
        if values == fingerprint:
            return f"A new run: {folder} has these settings and is finished; --resume writes its report again."
        if not (folder / _DONE).exists() and not _is_running(folder):
            return (
                f"A new run: the last one, {folder}, has other settings ({describe_differences(values, fingerprint)})."
            )
    return ""


def _describe_resumed(folder: Path, epochs: int) -> str:
    if (folder / _DONE).exists():
        return f"The run {folder} is finished; its report (and model) is written again."
    counts = {
        history.parent.name: len(_read_json(history) or ())
        for history in sorted(folder.glob("*/history.json"), key=lambda path: path.stat().st_mtime)
    }
    done = sum(count for name, count in counts.items() if name.startswith("seed-"))
    phases = [f"{count} of {name}" for name, count in counts.items() if not name.startswith("seed-")]
    if not done and not phases:
        return f"Resuming the run {folder}, of which no epoch is done."
    # How many epochs a phase has is not known here: it may be finished or not.
    before = f", after {' and '.join(phases)}" if phases else ""
    verb = "is" if epochs == 1 else "are"
    return f"Resuming the run {folder}: {done} of {epochs} epoch{'' if epochs == 1 else 's'} {verb} done{before}."


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the settings that differ, such as `rate 0.002 → 0.004`."""
    changed = [name for name in (*old, *(name for name in new if name not in old)) if old.get(name) != new.get(name)]
    named = [
        _describe_fact(name, old.get(name))
        if name in _OTHER_FACTS
        else f"{name.replace('_', ' ')} {_format(old.get(name))} → {_format(new.get(name))}"
        for name in changed[:_MAX_DIFFERENCES]
    ]
    more = f" and {len(changed) - _MAX_DIFFERENCES} more" if len(changed) > _MAX_DIFFERENCES else ""
    return ", ".join(dict.fromkeys(named)) + more


def _describe_fact(name: str, old: Any) -> str:
    return _OTHER_FACTS[name] if old is not None else f"{name.replace('_', ' ')} that {_UNRECORDED}"


def _format(value: Any) -> str:
    if value is None:
        return "unknown"
    return (",".join(map(str, value)) if isinstance(value, list) else str(value)) or "none"


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if there is none, or a kill or a full disk cut it off."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError:
        return None


def read_code_version(folder: Path) -> str:
    """Return the commit of the code that started the run in this folder, or `unknown`."""
    path = folder / _CODE
    return path.read_text().strip() if path.exists() else "unknown"


def _create(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = root / (stamp + suffix)
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise CannotTrain(f"{root} already contains a hundred runs started in this second.")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Lock the folder for this process; the lock is released when the process ends, even if it is killed."""
    try:
        import fcntl
    except ImportError:  # On this platform, nothing keeps two runs from using the same folder.
        yield
        return
    with (folder / _LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_running(folder: Path) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def mark_done(folder: Path, metrics: dict[str, Any]) -> None:
    """Record that the run is complete, with its metrics."""
    write_file(folder / _DONE, json.dumps(metrics, indent=1) + "\n")


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return what `mark_done` wrote; empty if the run is not complete."""
    metrics: dict[str, Any] = _read_json(folder / _DONE) or {}
    return metrics


def mark_published(folder: Path, model: Path) -> None:
    """Record which model was published from this run."""
    write_file(folder / _PUBLISHED, f"{model.resolve()}\n")


def published_version(folder: Path, models: Path) -> str:
    """Return name/version of the model published from this run, if it still exists in `models`; otherwise empty."""
    path = folder / _PUBLISHED
    model = Path(path.read_text(encoding="utf-8").strip()) if path.exists() else Path()
    exists = model.is_dir() and model.parent.parent == models.resolve()
    return f"{model.parent.name}/{model.name}" if exists else ""


def write_history(folder: Path, logs: Sequence[EpochLog]) -> None:
    """Write history.json and history.csv, with a row per epoch."""
    write_file(folder / "history.json", json.dumps([asdict(log) for log in logs], indent=1) + "\n")
    rows = [{k: v for k, v in asdict(log).items() if k != "scores"} | log.scores for log in logs]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(folder / "history.csv", text.getvalue())
