"""Folders in a data set."""

from collections.abc import Sequence
from pathlib import Path


def list_subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def first_existing(root: Path, names: Sequence[str]) -> Path | None:
    """Return the first of the named folders that exists in `root`; None if there is none."""
    return next((root / name for name in names if (root / name).is_dir()), None)
