"""Become a process in a container: a read-only root, user 10001, no capabilities. Runs in namespaces of its own.

`engine.py` starts it through `unshare --mount --pid --fork`, so that the process is number 1 of its container, as it is
in Kubernetes. It isolates less than a real engine (the network and the kernel's other names are the host's), but what
Pod Security "restricted" asks for is enforced: the kernel itself refuses writes to the root, and all capabilities.
"""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_MAX_CAPABILITY = 63
_DEVICES = ("null", "zero", "full", "random", "urandom")


@dataclass(frozen=True)
class Task:
    """What to run, and in what: folders of the host, and the image's configuration.

    Attributes:
        models: a folder that is mounted at /models; empty for none.
        user: UID:GID.
    """

    root: str
    models: str
    environment: dict[str, str]
    folder: str
    user: str
    command: list[str]


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _mount_root(root: Path, models: str) -> None:
    """Make the root read-only, with the few writable or special folders of a container."""
    _mount("--bind", str(root), str(root))
    for folder in ("proc", "dev", "tmp", "models"):
        (root / folder).mkdir(exist_ok=True)
    _mount("-t", "proc", "proc", str(root / "proc"))
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "dev"))
    for device in _DEVICES:
        (root / "dev" / device).touch()
        _mount("--bind", f"/dev/{device}", str(root / "dev" / device))
    (root / "dev" / "shm").mkdir()
    _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(root / "dev" / "shm"))
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(root / "tmp"))
    if models:
        _mount("--bind", models, str(root / "models"))
        _mount("-o", "remount,bind,ro", str(root / "models"))
    _mount("-o", "remount,bind,ro", str(root))


def _drop_privileges(user: int, group: int) -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for capability in range(_MAX_CAPABILITY):
        prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # The kernel knows fewer; it refuses the others.
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")


def main(task: Task) -> None:
    """Enter the container and replace this process by its command."""
    root = Path(task.root)
    _mount_root(root, task.models)
    user, group = (int(number) for number in task.user.split(":"))
    os.chroot(root)
    os.chdir(task.folder or "/")
    _drop_privileges(user, group)
    os.execvpe(task.command[0], task.command, task.environment)  # noqa: S606 -- no shell is meant


if __name__ == "__main__":
    main(Task(**json.loads(sys.argv[1])))
