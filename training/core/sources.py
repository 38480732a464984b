"""Where data sets and pretrained weights come from: official archives and the same content on a mirror."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Archive:
    """A file to fetch.

    Attributes:
        address: where it lies; in a mirror, relative to it.
        sha256: its SHA-256 in hex, or the first digits of it where no more are known; empty where nothing is: then
            the file is recognised by `Source.holds` alone, and the hash it had is printed.
        size: bytes; 0 where it is not known.
    """

    address: str
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True)
class Source:
    """A data set or a file of weights: the official archive, and the pack of the same content in a mirror.

    Attributes:
        name: of the folder (or file) it becomes.
        holds: paths or patterns that must be in it once it is unpacked; none: it is a file, not an archive.
    """

    name: str
    official: Archive
    mirrored: Archive
    holds: tuple[str, ...] = ()


class SourceFetcher(Protocol):
    """What a learner may ask for more data or weights; `training.data.download.Fetcher` is the real one."""

    @property
    def say(self) -> Callable[[str], None]:
        """Tells the user something."""

    def fetched(self, source: Source) -> Path:
        """The folder (the file) of the source, downloaded if it is not here yet. Raises NoData."""
