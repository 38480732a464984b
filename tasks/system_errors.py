"""What the operating system refuses, in words: a disk that is full, a folder that cannot be written or read.

And what a command line does if nobody reads its output.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence

_DISK_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EROFS: "the disk is read-only",
}
_REASONS = {
    **_DISK_REASONS,
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "it is a folder, not a file",
    errno.ENOTDIR: "part of its path is a file, not a folder",
    errno.EEXIST: "there is already a file of this name",
}


def is_disk_error(error: BaseException) -> bool:
    """Whether nothing more can be written to the disk: trying again, or another source, does not help."""
    return isinstance(error, OSError) and error.errno in _DISK_REASONS


def os_error_reason(error: OSError) -> str:
    """Return in words why the system refused, without the name of the file."""
    if error.errno in _REASONS:
        return _REASONS[error.errno]
    # An error of a process that prepares batches arrives as text: a traceback that ends with the reason.
    lines = (error.strerror or str(error)).strip().splitlines()
    return lines[-1].rstrip(".") if lines else type(error).__name__


def describe_os_error(error: OSError) -> str:
    """Return one sentence about a file or folder that the system did not let the program read or write."""
    if error.filename is None and error.filename2 is None:
        return f"The system refused: {os_error_reason(error)}."
    return f"{error.filename or error.filename2} cannot be used: {os_error_reason(error)}."


def run_command_line(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run a command and return its exit status: 1, without a traceback, if its output is no longer read (`| head`).

    As the documentation of Python's `signal` recommends (Note on SIGPIPE).
    """
    try:
        try:
            return main(arguments)
        finally:
            print(end="", flush=True)  # Here, since an error while Python exits cannot be handled.
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit.
        return 1
