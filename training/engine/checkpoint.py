"""Checkpoints: tensors and plain values only, written so that a kill at any moment leaves the last whole one."""

import os
from pathlib import Path
from typing import Any

import torch

from training.core.errors import CannotTrain

LAST, BEST = "last.pt", "best.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes the state beside `path`, then renames it there."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> dict[str, Any]:
    """The state at `path`, on the CPU. Raises CannotTrain where the file holds no such thing.

    Nothing in the file is executed: it is read with `weights_only=True`.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the broken file makes it stumble on.
        raise CannotTrain(f"{path} cannot be read as a file of tensors: {_first_line(error)}") from None
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
