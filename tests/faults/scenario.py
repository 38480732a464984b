"""What every scenario is given, and what several of them need."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.faults.sample_requests import Known
from tests.faults.server_process import Host

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One run of the scenarios.

    Attributes:
        models: the folder of the shipped models.
        known: the newest version of each.
        short: a form that only shows that all is in order, in seconds.
    """

    models: Path
    known: Mapping[str, Known]
    short: bool = False

    def pick(self, full: T, short: T) -> T:
        """The one value in a full run, the other in a short one."""
        return short if self.short else full

    def in_time(self, seconds: float | None, limit: float) -> bool:
        """Whether it took no longer, where that is judged: a short run shares the machine with others."""
        return seconds is not None and (self.short or seconds <= limit)

    @contextmanager
    def some(self, *names: str) -> Iterator[Path]:
        """A folder of some of the models only, which a server is sooner ready with."""
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                (Path(folder) / name).symlink_to((self.models / name).resolve(), target_is_directory=True)
            yield Path(folder)

    @contextmanager
    def copies(self, *names: str) -> Iterator[Path]:
        """The same as copies, in which versions may come and go."""
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                source = self.known[name].folder
                shutil.copytree(source, Path(folder) / name / source.name)
            yield Path(folder)


def batch_seconds(host: Host, name: str) -> float:
    """How long the longest batch takes that is ever made of a model's samples, from the server's measured curve."""
    limit = host.metric("sevenfold_batch_limit", model=name)
    curve = host.get(f"/v1/models/{name}")[1]["curve"]
    return max(float(point["seconds"]) for point in curve if point["size"] <= limit)


def ms(seconds: float) -> str:
    """Seconds as milliseconds, to be read."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds * 1000:,.0f} ms"


def first_of(found: Sequence[str]) -> str:
    """The first of what went wrong, for a cell of the table; empty where nothing did."""
    return f" (first: {found[0][:160].replace('|', '/')})" if found else ""
