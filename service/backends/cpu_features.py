"""What the processor can do that matters for the choice of a graph."""

import platform
import re
from pathlib import Path

_FEATURES = frozenset(("avx512_vnni", "avx_vnni", "asimddp", "i8mm"))
"""Linux' names of the instructions that multiply and add 8-bit integers in one step: x86's VNNI, and those of ARM."""
_LINE = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)


def has_int8_dot_product(root: Path = Path("/"), *, system: str = "", machine: str = "") -> bool:
    """Return whether the processor has instructions for dot products of 8-bit integers.

    Without them, ONNX Runtime's kernels for x86 add pairs of products in 16 bits, which may overflow, and gain little.

    Args:
        root: the folder under which /proc is.
        system: the name of the operating system, by default this one.
        machine: the architecture, by default this one.
    """
    if (system or platform.system()) == "Darwin":
        return (machine or platform.machine()) == "arm64"  # Each processor of Apple's since the M1 has them.
    try:
        match = _LINE.search((root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return False
    return match is not None and not _FEATURES.isdisjoint(match[1].split())
