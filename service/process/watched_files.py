"""Files whose contents are used at start, and again whenever they change: API keys, certificates.

The contents are compared, not times and sizes: they show every change, also that of a symbolic link, by which
Kubernetes replaces all files of a mounted Secret at once. Knows nothing about what the files contain.
"""

import logging
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

_LOG = logging.getLogger(__name__)
_MAX_BYTES = 1_000_000

Contents = tuple[bytes, ...]


class UnusableFile(Exception):
    """A file cannot be read or used; the message says why and what to do, without quoting the contents."""


class WatchedFiles:
    """Files that are used together.

    Args:
        label: the name of the files in logs and metrics.
        paths: the files.
        use: uses their contents; raises UnusableFile and changes nothing if it cannot.
        on_failure: called for each change that cannot be used.
    """

    def __init__(
        self, label: str, paths: Sequence[Path], use: Callable[[Contents], None], on_failure: Callable[[], None]
    ) -> None:
        self._label = label
        self._paths = tuple(paths)
        self._use = use
        self._on_failure = on_failure
        self._seen: Contents | str = ()
        """What the last look at the files has shown: their contents, or why they cannot be read."""
        self._handled: Contents | str = ()
        """The contents that were used last, or the last failure that was reported."""

    def load(self) -> None:
        """Use the files for the first time. Raises UnusableFile."""
        contents = tuple(read_small_file(path) for path in self._paths)
        self._use(contents)
        self._seen = self._handled = contents

    def check(self) -> None:
        """Use the contents if they have changed, and have not changed since the previous check.

        Programs write files piece by piece, and a certificate before its key: half of a file must not be used. What
        cannot be used is logged and counted once, and what was used before stays in use.
        """
        previous, self._seen = self._seen, self._look()
        if self._seen != previous or self._seen == self._handled:
            return
        self._handled = self._seen
        try:
            self._use_now(self._seen)
        except UnusableFile as error:
            self._on_failure()
            fields = {"file": self._label, "reason": str(error)}
            _LOG.error("a changed file cannot be used; what it said before stays in force", extra={"fields": fields})
        else:
            _LOG.info("a changed file is in use", extra={"fields": {"file": self._label}})

    def _look(self) -> Contents | str:
        try:
            return tuple(read_small_file(path) for path in self._paths)
        except UnusableFile as error:
            return str(error)

    def _use_now(self, seen: Contents | str) -> None:
        if isinstance(seen, str):
            raise UnusableFile(seen)
        self._use(seen)


def read_small_file(path: Path) -> bytes:
    """Return the contents of a regular file. Raises UnusableFile if it cannot be read or is too large."""
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would never return.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnusableFile(f"{path} is not a regular file.")
            contents = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UnusableFile(f"Cannot read {path}: {error.strerror}.") from None
    if len(contents) > _MAX_BYTES:
        raise UnusableFile(f"{path} is larger than {_MAX_BYTES:,} bytes.")
    return contents
