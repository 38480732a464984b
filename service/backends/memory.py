"""The memory of a device, free and in use, and whether the device still works."""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.backends.cgroups import control_groups, read_text

_CUDA_RUNTIMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""For each version of control groups: the files of limit and usage, and the memory.stat entry for droppable cache."""


_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Parameters of glibc's `mallopt` (malloc.h)."""
_MMAP_THRESHOLD = 4 * 1024 * 1024


def return_large_blocks() -> None:
    """Make glibc return large blocks when they are freed.

    Otherwise the first one that is freed raises the size from which blocks are mapped on their own, up to 32 MB. What
    is smaller than that then comes from the heap, which cannot shrink below its last block in use: the arena of ONNX
    Runtime grows by such blocks, and they would stay when it has shrunk.
    """
    _mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)


def keep_heap_small() -> None:
    """Make glibc use one heap for all threads; for where memory is tight.

    It would keep up to 64 MB of freed blocks in each of eight heaps per core. To be called before threads are started.
    """
    _mallopt(_M_ARENA_MAX, 2)


def _mallopt(parameter: int, value: int) -> None:
    getattr(ctypes.CDLL(None), "mallopt", lambda parameter, value: 0)(parameter, value)


def trim_heap() -> None:
    """Return what this process has freed to the system. glibc keeps much of it otherwise; other C libraries do not."""
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)


class DeviceMemory(Protocol):
    """The memory of a device, in bytes, and whether the device works; None for what is unknown."""

    def in_use(self) -> int | None:
        """Return the bytes in use: by this process on a CPU, by all processes on a GPU."""
        ...

    def free(self) -> int | None:
        """Return the bytes that are still available."""
        ...

    def total(self) -> int | None:
        """Return the bytes that there are, or that this process may use."""
        ...

    def is_lost(self) -> bool | None:
        """Return whether the device has failed for the rest of this process; None if it cannot be queried."""
        ...


@dataclass(frozen=True)
class HostMemory:
    """The memory of the machine, limited by the control groups of this process.

    Attributes:
        root: the folder that contains /proc and /sys.
    """

    root: Path = Path("/")

    def in_use(self) -> int | None:
        """Return the resident set size of this process (proc(5): the second field of statm, in pages)."""
        words = read_text(self.root / "proc/self/statm").split()
        return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else None

    def free(self) -> int | None:
        """Return the memory available without swapping, or less if a control group is nearer to its limit.

        Page cache that can be dropped counts as free, as in the kubelet.
        """
        candidates = [*self._available_on_machine(), *self._available_in_groups()]
        return max(0, min(candidates)) if candidates else None

    def total(self) -> int | None:
        """Return the memory of the machine, or the lowest limit of the control groups."""
        return min((size for size in (self._machine_total(), self._lowest_limit()) if size is not None), default=None)

    def limit(self) -> int | None:
        """Return the lowest limit of a control group, if it is below the memory of the machine; None if there is none.

        More than that, and the kernel kills a process of the group.
        """
        total, limit = self._machine_total(), self._lowest_limit()
        return limit if limit is not None and (total is None or limit < total) else None

    def _machine_total(self) -> int | None:
        kilobytes = _find_number(read_text(self.root / "proc/meminfo").replace(":", ""), "MemTotal")
        return None if kilobytes is None else kilobytes * 1024

    def _lowest_limit(self) -> int | None:
        texts = [group.read(_CGROUP_FILES[group.version][0]) for group in control_groups(self.root, "memory")]
        return min((int(text) for text in texts if text.isdecimal()), default=None)

    def is_lost(self) -> bool:
        """Return False: without a working CPU this process would not run."""
        return False

    def _available_on_machine(self) -> Iterator[int]:
        kilobytes = _find_number(read_text(self.root / "proc/meminfo").replace(":", ""), "MemAvailable")
        if kilobytes is not None:
            yield kilobytes * 1024

    def _available_in_groups(self) -> Iterator[int]:
        for group in control_groups(self.root, "memory"):
            limit_file, used_file, cached_name = _CGROUP_FILES[group.version]
            limit, used = group.read(limit_file), group.read(used_file)
            if limit.isdecimal() and used.isdecimal():
                yield int(limit) - int(used) + (_find_number(group.read("memory.stat"), cached_name) or 0)


@dataclass(frozen=True)
class CudaMemory:
    """The memory of the current CUDA device, read with the CUDA runtime library that this process has already loaded.

    Attributes:
        libraries: file names of the library, one per version of CUDA.
    """

    libraries: tuple[str, ...] = _CUDA_RUNTIMES

    def in_use(self) -> int | None:
        """Return the bytes in use on the device, including other processes and CUDA itself."""
        info = self._memory_info()
        return info[1] - info[0] if info else None

    def free(self) -> int | None:
        """Return the free bytes of the device."""
        info = self._memory_info()
        return info[0] if info else None

    def total(self) -> int | None:
        """Return the bytes of the device."""
        info = self._memory_info()
        return info[1] if info else None

    def _memory_info(self) -> tuple[int, int] | None:
        """Return free and total bytes (CUDA Runtime API, cudaMemGetInfo)."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        runtime = _cuda_runtime(self.libraries)
        if runtime is None or runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)) != 0:
            return None
        return free.value, total.value

    def is_lost(self) -> bool | None:
        """Return whether CUDA has failed for the rest of this process; None if it cannot be queried.

        Waits for the device to finish its work (CUDA Runtime API, cudaDeviceSynchronize). After an unrecoverable error,
        this call returns the error like every other call.
        """
        runtime = _cuda_runtime(self.libraries)
        return None if runtime is None else runtime.cudaDeviceSynchronize() != 0


def _cuda_runtime(names: Sequence[str]) -> ctypes.CDLL | None:
    """Return the runtime library if it is already loaded, without loading one."""
    for name in names:
        with suppress(OSError):  # This version is not loaded.
            return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    return None


def _find_number(text: str, name: str) -> int | None:
    """Return the number after `name` in the line that starts with it."""
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name:
            return int(words[1])
    return None
