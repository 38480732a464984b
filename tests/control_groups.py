"""A real control group of Linux for a test: limits the memory and the cores of a process and all that it starts.

That needs the right to create groups: root, on a machine or in a container whose control groups are writable.

`python -m tests.control_groups FLAGS` starts the server inside the groups that the environment names: the process joins
them before it becomes the server, so that none of its memory is counted elsewhere.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from service.backends.cgroups import ControlGroup, control_groups

MODULE = "tests.control_groups"
_VARIABLE = "TEST_CONTROL_GROUPS"
_PERIOD_US = 100_000
_REMOVE_TIMEOUT_S = 10.0
_numbers = count()


class CannotLimit(OSError):
    """This machine does not let this process create a control group with the limits that were asked for."""


@dataclass(frozen=True)
class LimitedGroup:
    """Groups that were made for one test.

    Attributes:
        memory: the group that limits memory; None if nothing was limited.
        cpu: the group that limits cores; None if nothing was limited.
    """

    memory: ControlGroup | None
    cpu: ControlGroup | None

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables with which `python -m tests.control_groups` joins the groups."""
        groups = {str(group.folder) for group in (self.memory, self.cpu) if group is not None}
        return {_VARIABLE: os.pathsep.join(sorted(groups))}

    def pids(self) -> list[int]:
        """Return the processes in the group of memory."""
        return [] if self.memory is None else [int(pid) for pid in self.memory.read("cgroup.procs").split()]

    def killed(self) -> int:
        """Return how many processes the kernel has killed because the group had used up its memory."""
        if self.memory is None:
            return 0
        file = "memory.oom_control" if self.memory.version == 1 else "memory.events"
        counts = dict(line.split() for line in self.memory.read(file).splitlines())
        return int(counts.get("oom_kill", 0))

    def peak_bytes(self) -> int:
        """Return the most memory that was in use, including page cache; 0 if unknown."""
        if self.memory is None:
            return 0
        file = "memory.max_usage_in_bytes" if self.memory.version == 1 else "memory.peak"
        return int(self.memory.read(file) or 0)

    def used_bytes(self) -> int:
        """Return the memory in use now that cannot be dropped: without page cache."""
        if self.memory is None:
            return 0
        name = "total_rss" if self.memory.version == 1 else "anon"
        stat = dict(line.split() for line in self.memory.read("memory.stat").splitlines())
        return int(stat.get(name, 0))


@contextmanager
def limited_group(*, memory_bytes: int | None = None, cores: float | None = None) -> Iterator[LimitedGroup]:
    """Make groups with these limits below those of this process; they are removed at the end.

    Raises CannotLimit where that is not allowed.
    """
    made: list[ControlGroup] = []
    try:
        try:
            memory = None if memory_bytes is None else _make_group("memory", made)
            if memory is not None and memory_bytes is not None:
                _limit_memory(memory, memory_bytes)
            cpu = None if cores is None else _make_group("cpu", made)
            if cpu is not None and cores is not None:
                _limit_cores(cpu, cores)
        except OSError as error:
            raise CannotLimit(f"No control group can be made here: {error}.") from error
        yield LimitedGroup(memory, cpu)
    finally:
        for group in made:
            _remove(group.folder)


def _make_group(controller: str, made: list[ControlGroup]) -> ControlGroup:
    own = next((group for group in control_groups(Path("/"), controller) if group.folder.is_dir()), None)
    if own is None:
        raise FileNotFoundError(f"the controller '{controller}' is not mounted")
    if own.version == 2 and controller not in own.read("cgroup.subtree_control").split():
        raise PermissionError(f"the controller '{controller}' is not available to children of {own.folder}")
    for group in made:
        if group.version == 2 and group.folder.parent == own.folder:
            return group
    folder = own.folder / f"sevenfold-test-{os.getpid()}-{next(_numbers)}"
    folder.mkdir()
    group = ControlGroup(own.version, folder)
    made.append(group)
    return group


def _limit_memory(group: ControlGroup, limit: int) -> None:
    files = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if group.version == 1 else ("memory.max",)
    for file in files:
        if (group.folder / file).exists():  # Without swap accounting there is no limit on swap.
            (group.folder / file).write_text(str(limit))
    if group.version == 2 and (group.folder / "memory.swap.max").exists():
        (group.folder / "memory.swap.max").write_text("0")


def _limit_cores(group: ControlGroup, cores: float) -> None:
    quota = round(cores * _PERIOD_US)
    if group.version == 1:
        (group.folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (group.folder / "cpu.cfs_quota_us").write_text(str(quota))
    else:
        (group.folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}")


def _remove(folder: Path) -> None:
    """Remove a group; the kernel refuses until its last process has gone."""
    ends = time.monotonic() + _REMOVE_TIMEOUT_S
    while folder.exists() and time.monotonic() < ends:
        with suppress(OSError):
            folder.rmdir()


def main() -> None:
    """Join the groups that the environment names, and become the server."""
    for folder in filter(None, os.environ.pop(_VARIABLE, "").split(os.pathsep)):
        Path(folder, "cgroup.procs").write_text(str(os.getpid()))
    os.execv(sys.executable, [sys.executable, "-m", "service", *sys.argv[1:]])  # noqa: S606 -- our own program


if __name__ == "__main__":
    main()
