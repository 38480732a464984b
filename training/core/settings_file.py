"""The settings.json that a run wrote, from which the same run can be started anew."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.near_names import suggest
from tasks.system_errors import describe_os_error
from training.core.config import Settings, describe_values, is_valid, option_fields, overlay
from training.core.errors import CannotTrain

SETTINGS = "settings.json"
FACTS = ("recipe", "task", "processes", "samples", "parameters", "data")
"""Keys of the file that say what a run was trained on; all others are settings."""


@dataclass(frozen=True)
class SettingsFile:
    """Settings by name, with the recipe and the task that they are of."""

    path: Path
    values: dict[str, Any]

    @property
    def recipe(self) -> str:
        """The name of the recipe, or of the model that was trained on the user's own data; empty if not stated."""
        return str(self.values.get("recipe", ""))

    @property
    def task(self) -> str:
        """The name of the task; empty if not stated."""
        return str(self.values.get("task", ""))

    @property
    def processes(self) -> int | None:
        """The number of processes that trained; None if not stated."""
        processes = self.values.get("processes")
        return processes if isinstance(processes, int) else None

    def apply(self, settings: Settings, options: Any) -> tuple[Settings, Any]:
        """Return the settings and the options with the values of the file.

        Raises CannotTrain if the file has a key that is neither, or a value that its option may not have.
        """
        known = {item.name: item for item in (*option_fields(settings), *option_fields(options))}
        values = {}
        for name, given in self.values.items():
            if name not in known:
                if name in FACTS:
                    continue
                raise CannotTrain(
                    f"{self.path}: '{name}' is no setting of {self.task or 'this task'}.{suggest(name, known)}"
                )
            value: Any = tuple(given) if isinstance(given, list) else given
            if not is_valid(known[name], value):
                raise CannotTrain(f"{self.path}: '{name}' is {json.dumps(given)}, not {describe_values(known[name])}.")
            values[name] = float(value) if isinstance(known[name].default, float) else value
        return overlay(settings, values), overlay(options, values)

    def missing(self, *configs: Any, without: Collection[str]) -> list[str]:
        """Return the options that the file does not contain, as a file of an older version."""
        names = (item.name for config in configs for item in option_fields(config))
        return [name for name in names if name not in self.values and name not in without]


def read_settings_file(path: Path) -> SettingsFile:
    """Read a settings.json; `path` may be the folder of the run. Raises CannotTrain."""
    file = path / SETTINGS if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CannotTrain(f"--config {file}: no such file; name the settings.json of a run.") from None
    except OSError as error:
        raise CannotTrain(f"--config: {describe_os_error(error)}") from None
    except ValueError as error:
        raise CannotTrain(f"--config {file}: it cannot be read as JSON: {error}.") from None
    if not isinstance(values, dict):
        raise CannotTrain(f"--config {file}: it contains no settings by name; name the settings.json of a run.")
    if "study" in values:
        raise CannotTrain(f"--config {file}: it is of the study {values['study']}, which takes its options one by one.")
    return SettingsFile(file, values)
