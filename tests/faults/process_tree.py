"""What a process and all its descendants use of the machine, from /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class TreeUsage:
    """Totals of a tree of processes.

    Attributes:
        processes: how many there are.
        cpu_s: processor time, including that of descendants which have ended and were waited for.
        resident_mb: resident memory; pages that several share count for each.
        private_mb: the memory that would be freed if all of them ended: shared pages count once (PSS).
    """

    processes: int
    cpu_s: float
    resident_mb: float
    private_mb: float


def tree_usage(root: int) -> TreeUsage:
    """Return what the process with this id and its descendants use; those that end meanwhile are left out."""
    usages = [usage for pid in _tree(root) if (usage := _usage(pid)) is not None]
    return TreeUsage(
        len(usages),
        sum(usage.cpu_s for usage in usages),
        sum(usage.resident_mb for usage in usages),
        sum(usage.private_mb for usage in usages),
    )


def tree_cpu_s(root: int) -> float:
    """Return only the processor time, which is cheap to read."""
    return sum(_cpu_s(fields) for pid in _tree(root) if (fields := _stat(pid)) is not None)


def _tree(root: int) -> list[int]:
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


def _usage(pid: int) -> TreeUsage | None:
    fields = _stat(pid)
    if fields is None:
        return None
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except (FileNotFoundError, ProcessLookupError):
        return None
    pss_kb = next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return TreeUsage(1, _cpu_s(fields), int(fields[21]) * _PAGE_BYTES / 1e6, pss_kb * 1024 / 1e6)
