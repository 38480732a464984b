"""How many server processes there are, and what of the machine each of them may use."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from service.backends.cores import available_cores
from service.backends.cuda_libraries import gpu_is_visible
from service.backends.memory import HostMemory
from service.engine.memory_budget import model_bytes
from service.models.discovery import ModelFolder
from service.settings import AUTO, InvalidSetting, Settings
from tasks.manifest import MODEL, BrokenModel

PROCESS_BYTES = 150_000_000
"""What a further server process needs without any model: itself, and the processes that decode for it."""
REQUEST_BYTES = 200_000_000
"""What each process should have for requests: with less, photos of a usual camera are refused."""


@dataclass(frozen=True)
class ProcessCount:
    """How many server processes there are to be.

    Attributes:
        count: at least 1.
        problem: why there are fewer than the setting asks for; None if there are not.
    """

    count: int
    problem: str | None = None


@dataclass(frozen=True)
class SharedHostMemory(HostMemory):
    """The memory of the machine, of which several processes may use equal parts.

    Attributes:
        processes: the number of them.
    """

    processes: int = 1

    def free(self) -> int | None:
        """Return the part of the free memory that this process may use."""
        free_bytes = super().free()
        return None if free_bytes is None else free_bytes // self.processes


def process_count(settings: Settings, root: Path = Path("/")) -> ProcessCount:
    """Return how many server processes there are to be.

    `auto` is one for each core, as far as memory allows, and one on a GPU. A number that memory does not allow is
    lowered, because the kernel would end processes otherwise.

    Args:
        settings: the settings.
        root: the folder that contains /proc, /sys and /dev.

    Raises InvalidSetting if several processes are asked for on a GPU.
    """
    asked = settings.processes
    uses_gpu = settings.device == "cuda" or (settings.device == "auto" and gpu_is_visible(root))
    if uses_gpu and isinstance(asked, int) and asked > 1:
        raise InvalidSetting(
            f"processes must be 1 or auto on a GPU, not {asked}: each process would keep every model in the memory of "
            "the device, and batch only its own requests. For several processes on the CPU, set --device cpu."
        )
    if uses_gpu or asked == 1:
        return ProcessCount(1)
    wanted = asked if isinstance(asked, int) else available_cores(root)
    fitting = _fitting_in_memory(settings, root)
    if asked == AUTO or wanted <= fitting:
        return ProcessCount(min(wanted, fitting))
    return ProcessCount(
        fitting,
        f"{wanted} processes need about {wanted * process_bytes(settings) // 1_000_000:,} MB, which is more than is "
        f"free: there will be {fitting}. Raise the memory limit, or serve fewer models with --only",
    )


def process_bytes(settings: Settings) -> int:
    """Estimate the memory that one of several server processes needs, in bytes, with its models and for requests."""
    return PROCESS_BYTES + REQUEST_BYTES + sum(model_bytes(size) for size in _graph_sizes(settings))


def settings_for_one(settings: Settings, processes: int, cores: int) -> Settings:
    """Return the settings of one of several processes: its part of the cores, of the threads and of the memory.

    Limits of a single request, and of the requests of a model (`max_queue`), are those of each process.
    """

    def part(number: int, default: int) -> int:
        return math.ceil(number / processes) if number else default

    share = max(1, cores // processes)
    return replace(
        settings,
        threads=part(settings.threads, share),
        workers=part(settings.workers, share),
        decoders=part(settings.decoders, max(share, math.ceil(2 / processes))),
        batches_at_once=part(settings.batches_at_once, 2 * share),
        memory_mb=settings.memory_mb / processes,
        max_bodies_bytes=max(settings.max_body_bytes, settings.max_bodies_bytes // processes),
    )


def _fitting_in_memory(settings: Settings, root: Path) -> int:
    free_bytes = HostMemory(root).free()
    return available_cores(root) * 64 if free_bytes is None else max(1, free_bytes // process_bytes(settings))


def _graph_sizes(settings: Settings) -> Iterator[int]:
    """Yield the sizes of the graphs that are served, in bytes."""
    try:
        found = ModelFolder(settings.models, frozenset(settings.only)).look()
    except BrokenModel:  # The server reports it.
        return
    for name, versions in found.models.items() if found else ():
        pinned = settings.pin.get(name)
        served = versions[: settings.versions or None] if pinned is None else versions
        for version in served:
            path = settings.models / name / version.version / MODEL
            if pinned in (None, int(version.version)) and path.is_file():
                yield path.stat().st_size
