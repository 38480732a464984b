"""Which code this is."""

import subprocess
from pathlib import Path

_ROOT, _PACKAGES = Path(__file__).parents[2], ("training", "tasks")


def code_version() -> str:
    """The commit of this code, marked where trainer or tasks have changes that are not committed; or `unknown`."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_ROOT), *arguments]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
        return found.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--", *_PACKAGES) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
