"""What other programs use of the processor while a server is under load."""

import os
import resource
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.peers.processes import ServerProcess

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class MachineLoad:
    """A context: afterwards, `others` says how many cores other programs used on average.

    It is what the whole machine used, with what a hypervisor took away, less what the server, this process and the
    programs that it has run used.
    """

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.others = 0.0

    def __enter__(self) -> Self:
        self._began, self._before = time.monotonic(), self._unexplained_s()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed = time.monotonic() - self._began
        self.others = max(0.0, (self._unexplained_s() - self._before) / elapsed)

    def _unexplained_s(self) -> float:
        return machine_cpu_s(Path("/proc/stat").read_text("ascii")) - self.server.cpu_s - _own_cpu_s()


def machine_cpu_s(stat: str) -> float:
    """Return the processor time of all programs, and that which a hypervisor took, from the text of /proc/stat.

    Interrupts are left out: those of the network, which belong to the load.
    """
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    return (user + nice + system + steal) / _TICKS_PER_S


def _own_cpu_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
