"""The Linux control groups that limit this process: container runtimes set its memory and CPU with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class ControlGroup:
    """A control group that this process belongs to.

    Attributes:
        version: of the interface, 1 or 2; the names of its files differ.
        folder: that holds those files.
    """

    version: int
    folder: Path

    def read(self, file: str) -> str:
        """Return the text of one of its files, without surrounding blanks; empty if there is none."""
        return read_text(self.folder / file).strip()


def control_groups(root: Path, controller: str) -> Iterator[ControlGroup]:
    """Yield the groups that limit what a controller ('memory', 'cpu') controls.

    A limit applies to all groups below it, so they are the group of this process and all its parents. The mount point
    is among them: inside a container it is the container's own group, whose path is the host's.

    Args:
        root: the folder that contains /proc and /sys.
        controller: name of the controller.
    """
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, is_group, group = rest.partition(":")
        if not is_group:
            continue
        if not controllers:
            yield from _along_path(2, root / "sys/fs/cgroup", group)
        elif controller in controllers.split(","):
            yield from _along_path(1, root / "sys/fs/cgroup" / controller, group)


def _along_path(version: int, mount: Path, group: str) -> Iterator[ControlGroup]:
    path = PurePosixPath(group.lstrip("/"))
    for folder in (mount / path, *(mount / parent for parent in path.parents)):
        yield ControlGroup(version, folder)


def read_text(path: Path) -> str:
    """Return the text of a file; empty if it cannot be read."""
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
