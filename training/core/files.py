"""Files that appear complete or not at all, and folders that can be written to before hours of training."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from tasks.system_errors import os_error_reason
from training.core.errors import CannotTrain


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file as a whole: to a temporary file beside it, which then replaces it.

    If that fails, `path` is what it was before, and nothing else is left. Raises OSError, which names `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def require_readable(data: Path) -> None:
    """Raise OSError if `data` is a folder and one in it cannot be listed: its files would be left out without a word.

    Hidden folders are not read, and not checked.
    """

    def fail(error: OSError) -> None:
        raise error

    for _, folders, _ in os.walk(data, onerror=fail) if data.is_dir() else ():
        folders[:] = [name for name in folders if not name.startswith(".")]


def require_writable(folder: Path, option: str) -> None:
    """Raise CannotTrain if no file can be written to a folder, or the folder cannot be created.

    Nothing is created: a folder that does not exist yet is judged by the nearest one above it that does.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise CannotTrain(f"{option} {folder}: no file can be written there: {os_error_reason(error)}.") from None
