"""Checkpoints: tensors and plain values, written atomically so that a kill leaves the previous one intact."""

import io
from pathlib import Path
from typing import Any

import torch

from training.core.errors import CannotTrain
from training.core.files import write_file

LAST, BEST = "last.pt", "best.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state; if that fails, the file is what it was before. Raises OSError."""
    content = io.BytesIO()  # When it writes to a file on a full disk itself, torch raises other errors or aborts.
    torch.save(state, content)
    write_file(path, content.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Return the state at `path`, on the CPU. Raises CannotTrain if the file is not a checkpoint.

    Nothing in the file is executed: it is read with `weights_only=True`.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A broken file can make torch raise almost any exception.
        raise CannotTrain(f"{path} cannot be read as a file of tensors: {_first_line(error)}") from None
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
