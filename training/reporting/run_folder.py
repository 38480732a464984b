"""Run folders: where a training run keeps its checkpoints, its history and its report, and how it is found again."""

import csv
import hashlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.contract import files_of, parameters_of
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.provenance import code_version
from training.core.recipe import Recipe
from training.core.results import EpochLog
from training.engine.learner import Learner
from training.engine.runtime import Runtime

_SETTINGS, _DONE, _LOCK, _CODE = "settings.json", "done.json", ".lock", "code.txt"
_PUBLISHED = "published.txt"
SETTINGS_WITHOUT_EFFECT = ("workers", "threads", "checkpoint_steps", "device", "cache_mb")
"""Settings that change how long a run takes, and not what comes of it."""


@dataclass(frozen=True)
class Plan:
    """Everything a run's result follows from."""

    recipe: Recipe
    settings: Settings
    options: Any
    command: str

    def fingerprint(self, learner: Learner, runtime: Runtime) -> dict[str, Any]:
        """What must be the same for a run to be the same run."""
        chosen = {**asdict(self.settings), **asdict(self.options), "precision": runtime.precision}
        task = json.dumps({**parameters_of(learner.task), **files_of(learner.task)}, sort_keys=True)
        return {
            "recipe": self.recipe.name,
            "task": self.recipe.task,
            "device": runtime.device.type,
            "processes": runtime.world_size,
            "samples": len(learner.samples),
            "parameters": hashlib.sha256(task.encode()).hexdigest(),
            **{
                name: list(value) if isinstance(value, tuple) else value
                for name, value in chosen.items()
                if name not in SETTINGS_WITHOUT_EFFECT
            },
        }


def find_or_create(root: Path, fingerprint: dict[str, Any], resume: str) -> Path:
    """The folder of an earlier run with this fingerprint, or a new one.

    `resume` is `auto` (an unfinished run is resumed), `always` (a finished one too), `keep` (the same, or a new one
    where there is none) or `never`. Raises CannotTrain where a run must be resumed and there is none.
    """
    for folder in sorted(root.glob("*/"), reverse=True) if resume != "never" else ():
        settings = folder / _SETTINGS
        if not settings.exists() or json.loads(settings.read_text()) != fingerprint or _is_running(folder):
            continue
        if resume in ("always", "keep") or not (folder / _DONE).exists():
            return folder
    if resume == "always":
        raise CannotTrain(f"No run in {root} has these settings and this data: leave --resume out to start one.")
    folder = _new(root)
    (folder / _SETTINGS).write_text(json.dumps(fingerprint, indent=1) + "\n")
    (folder / _CODE).write_text(code_version() + "\n")
    return folder


def read_code_version(folder: Path) -> str:
    """The commit of the code that the run in this folder began with, or `unknown`."""
    path = folder / _CODE
    return path.read_text().strip() if path.exists() else "unknown"


def _new(root: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = root / (stamp + suffix)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise CannotTrain(f"{root} holds a hundred runs of this second.")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock goes with the process, also when it is killed."""
    try:
        import fcntl
    except ImportError:  # Where there is no such lock, two runs started at once must be told apart by hand.
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


def mark_done(folder: Path, facts: dict[str, Any]) -> None:
    """Writes that the run is complete."""
    (folder / _DONE).write_text(json.dumps(facts, indent=1) + "\n")


def read_metrics(folder: Path) -> dict[str, Any]:
    """What `mark_done` wrote; nothing where the run is not complete."""
    path = folder / _DONE
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return facts


def mark_published(folder: Path, model: Path) -> None:
    """Writes which model was published of this run."""
    (folder / _PUBLISHED).write_text(f"{model.resolve()}\n", encoding="utf-8")


def published_version(folder: Path, models: Path) -> str:
    """Name and version of the model that was published of this run among `models`; empty where there is none now."""
    path = folder / _PUBLISHED
    model = Path(path.read_text(encoding="utf-8").strip()) if path.exists() else Path()
    there = model.is_dir() and model.parent.parent == models.resolve()
    return f"{model.parent.name}/{model.name}" if there else ""


def write_history(folder: Path, rows: Sequence[EpochLog]) -> None:
    """history.json and history.csv: a row an epoch."""
    (folder / "history.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    flat = [{k: v for k, v in asdict(row).items() if k != "scores"} | row.scores for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    (folder / "history.csv").write_text(text.getvalue())
