"""The number of CPU cores that this process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from service.backends.cgroups import control_groups


def available_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use, rounded up, at least 1.

    That is the smallest of: the cores of the machine, those that the process is bound to, and the quotas of its control
    groups (`docker run --cpus`, a limit on Kubernetes). More threads than that would be stopped for the rest of each
    period of the quota, usually 100 ms, in the middle of their work.

    Args:
        root: the folder that contains /proc and /sys.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the cores that the quotas of the control groups allow, which may be a fraction; None without a quota."""
    return min(_quotas(root), default=None)


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores that each control group is limited to (cgroup-v2 and sched-bwc in the kernel's documentation)."""
    for group in control_groups(root, "cpu"):
        if group.version == 1:
            limit = [group.read("cpu.cfs_quota_us"), group.read("cpu.cfs_period_us")]  # A quota of -1 is no limit.
        else:
            limit = group.read("cpu.max").split()  # "max 100000" is no limit.
        if len(limit) == 2 and all(number.isdecimal() and int(number) for number in limit):
            yield int(limit[0]) / int(limit[1])
