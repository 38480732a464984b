"""When, at which commit and on which machine a figure was measured; stored beside every result."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from service.backends.cores import available_cores


def describe_machine() -> dict[str, Any]:
    """Return the time, the commit, the versions and the processor."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False)
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "onnxruntime": _onnxruntime(),
        "cores": available_cores(),
        "processor": _processor(),
    }


def _onnxruntime() -> str:
    """Return the version of the build that is installed, for CPUs or for GPUs; a client alone has none."""
    for build in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return version(build)
        except PackageNotFoundError:
            continue
    return "none"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
