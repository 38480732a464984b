"""A new version of a model, which appears in the folder of models complete or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def find_last_version(home: Path) -> Path | None:
    """Return the folder of a model's last version; None if there is none."""
    versions = [path for path in home.iterdir() if path.name.isdecimal()] if home.is_dir() else []
    return max(versions, key=lambda path: int(path.name), default=None)


def write_version(home: Path, write: Callable[[Path, str], None]) -> Path:
    """Write the next free version of a model and return its folder, `home`/VERSION.

    `write` gets an empty folder beside it, whose name the service ignores, and the version; the folder is renamed once
    `write` has returned. If `write` raises, or the process is interrupted, nothing of the version is left, nor a
    `home` that did not exist before. What a killed process has left is removed by the next call. Raises OSError.
    """
    created = [path for path in (home, *home.parents) if not path.exists()]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with lock_folder(home):
            return _write_next_version(home, write)
    except BaseException as error:
        for path in created:
            with suppress(OSError):  # It is not empty: another process has written to it in the meantime.
                path.rmdir()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(home)
        raise


def _write_next_version(home: Path, write: Callable[[Path, str], None]) -> Path:
    while True:
        version = str(_next_version(home))
        partial = home / f".{version}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            write(partial, version)
            partial.rename(home / version)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            if (home / version).exists():  # Another process has written this version in the meantime.
                continue
            raise
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return home / version


def _next_version(home: Path) -> int:
    last = find_last_version(home)
    return int(last.name) + 1 if last else 1


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time write versions to a folder, where the system can lock folders."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # Some network file systems do not lock folders.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
