"""How much memory a device has left, how much is taken, and whether it still works."""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

_CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""For each version of control groups: the files of the limit and of what is used, and what of that is only a cache."""


class Memory(Protocol):
    """The memory of a device, in bytes, and its state; None for what cannot be found out."""

    def in_use(self) -> int | None:
        """What is taken: by this process on a CPU, by all on a GPU."""
        ...

    def free(self) -> int | None:
        """What could still be had."""
        ...

    def is_lost(self) -> bool | None:
        """Whether nothing will run on the device again in this process; None where it cannot be asked."""
        ...


@dataclass(frozen=True)
class MainMemory:
    """The memory of the computer, of which the control group of the process may leave it only a part.

    Attributes:
        root: the folder that /proc and /sys lie in.
    """

    root: Path = Path("/")

    def in_use(self) -> int | None:
        """The resident set of this process (proc(5), statm: its second number, in pages)."""
        words = _read(self.root / "proc/self/statm").split()
        return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else None

    def free(self) -> int | None:
        """What the kernel takes to be available without swapping, or less where a control group leaves less.

        A limit holds for all groups below it, so that each one from the group of the process up is looked at. Files
        that have been read and can be forgotten again count as free, as the kubelet counts them.
        """
        figures = [*self._available(), *self._left_by_groups()]
        return max(0, min(figures)) if figures else None

    def is_lost(self) -> bool:
        """Never: a process that has lost its processor does not ask."""
        return False

    def _available(self) -> Iterator[int]:
        kilobytes = _named(_read(self.root / "proc/meminfo").replace(":", ""), "MemAvailable")
        if kilobytes is not None:
            yield kilobytes * 1024

    def _left_by_groups(self) -> Iterator[int]:
        for line in _read(self.root / "proc/self/cgroup").splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                yield from self._left_along(2, self.root / "sys/fs/cgroup", group)
            elif "memory" in controllers.split(","):
                yield from self._left_along(1, self.root / "sys/fs/cgroup/memory", group)

    def _left_along(self, version: int, mounted: Path, group: str) -> Iterator[int]:
        """Also at the mount itself: a container sees its own group there, under a name that only its host knows."""
        limit_file, used_file, cached_name = _CGROUP_FILES[version]
        path = PurePosixPath(group.lstrip("/"))
        for folder in (mounted / path, *(mounted / parent for parent in path.parents)):
            limit, used = _read(folder / limit_file).strip(), _read(folder / used_file).strip()
            if limit.isdecimal() and used.isdecimal():
                yield int(limit) - int(used) + (_named(_read(folder / "memory.stat"), cached_name) or 0)


@dataclass(frozen=True)
class CudaMemory:
    """The memory of the CUDA device that is current, by the runtime library that this process has loaded already.

    Attributes:
        libraries: the names that the library may have, one for each version of CUDA.
    """

    libraries: tuple[str, ...] = _CUDA_RUNTIMES

    def in_use(self) -> int | None:
        """All that is taken on the device: also by other processes, and by CUDA itself."""
        figures = self._figures()
        return figures[1] - figures[0] if figures else None

    def free(self) -> int | None:
        """What the device has left."""
        figures = self._figures()
        return figures[0] if figures else None

    def _figures(self) -> tuple[int, int] | None:
        """Free and total (CUDA Runtime API, cudaMemGetInfo)."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        runtime = _cuda_runtime(self.libraries)
        if runtime is None or runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) != 0:
            return None
        return free.value, total.value

    def is_lost(self) -> bool | None:
        """Whether CUDA does nothing more in this process; None where it cannot be asked.

        Waits for what the device is doing (CUDA Runtime API, cudaDeviceSynchronize): an error that CUDA cannot get over
        is returned by that, as by every other call.
        """
        runtime = _cuda_runtime(self.libraries)
        return None if runtime is None else runtime.cudaDeviceSynchronize() != 0


def _cuda_runtime(names: Sequence[str]) -> ctypes.CDLL | None:
    """The runtime library that is loaded already; none is loaded for this."""
    for name in names:
        with suppress(OSError):  # Another version is loaded, or none.
            return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    return None


def _read(path: Path) -> str:
    """The text of a file; empty where there is none, or none that may be read."""
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


def _named(text: str, name: str) -> int | None:
    """The number that follows a name at the beginning of a line."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name:
            return int(words[1])
    return None
