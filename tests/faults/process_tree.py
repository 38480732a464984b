"""What a process and all its descendants use of the machine, from /proc."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class TreeUsage:
    """What a tree of processes uses.

    Attributes:
        processes: how many there are.
        root_mb: resident memory of the process at its root.
        tree_mb: memory of all of them, in which a page that several share counts once (proportional set size).
    """

    processes: int
    root_mb: float
    tree_mb: float


def tree_usage(root: int) -> TreeUsage:
    """Return what the process with this id and its descendants use; those that end meanwhile are left out."""
    pids = process_tree(root)
    resident_kb, _ = _memory_kb(root)
    return TreeUsage(len(pids), resident_kb * 1024 / 1e6, sum(_memory_kb(pid)[1] for pid in pids) * 1024 / 1e6)


def tree_handles(root: int) -> tuple[int, int]:
    """Return how many threads and open descriptors a process and its descendants have."""
    threads = descriptors = 0
    for pid in process_tree(root):
        try:
            threads += len(os.listdir(f"/proc/{pid}/task"))
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has just ended.
    return threads, descriptors


def tree_cpu_s(root: int) -> float:
    """Return the processor time of a process and its descendants, with that of those which have ended."""
    return sum(_cpu_s(fields) for pid in process_tree(root) if (fields := _stat(pid)) is not None)


def process_tree(root: int) -> list[int]:
    """Return the ids of a process and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and (fields := _stat(int(path.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the name, which may contain anything: state, parent, and so on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _cpu_s(fields: list[str]) -> float:
    return sum(map(int, fields[11:15])) / _TICKS_PER_S  # utime, stime, cutime, cstime.


def _memory_kb(pid: int) -> tuple[int, int]:
    """Return resident memory and proportional set size; zeros for a process that has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    sizes = {name: int(size) for name, size in re.findall(r"^(Rss|Pss):\s+(\d+)", rollup, re.MULTILINE)}
    return sizes.get("Rss", 0), sizes.get("Pss", 0)
