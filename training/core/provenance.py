"""Which version of the code is running."""

import subprocess
from pathlib import Path

_ROOT, _PACKAGES = Path(__file__).parents[2], ("training", "tasks")


def code_version() -> str:
    """Return the commit of this code, or `unknown`; `+changes` marks uncommitted changes in training/ or tasks/."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--", *_PACKAGES) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
