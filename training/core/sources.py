"""Where data sets and pretrained weights come from: official archives, and the same content on a mirror."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        address: its URL; on a mirror, its path relative to the mirror.
        sha256: its SHA-256 in hex, or its first digits if no more are known. Empty if no hash is known: the
            content is then checked by `Source.contains` alone, and the hash of the file is printed.
        size: bytes; 0 where unknown.
    """

    address: str
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True)
class Source:
    """A data set or a file of weights: the official archive, and an archive of the same content on a mirror.

    Attributes:
        name: name of the folder (or file) that it is stored as.
        contains: paths or glob patterns that the unpacked archive must contain; empty: it is a file, not an archive.
        alternative: what the user can do without it, such as `train without pretrained weights: --weights none`;
            empty: nothing.
    """

    name: str
    official: Archive
    mirrored: Archive
    contains: tuple[str, ...] = ()
    alternative: str = "unpack the data yourself and name its folder with --data"


class SourceFetcher(Protocol):
    """How a learner fetches more data or weights; implemented by `training.data.download.Fetcher`."""

    @property
    def log(self) -> Callable[[str], None]:
        """Print a line for the user."""

    def fetch(self, source: Source) -> Path:
        """Return the folder (or file) of the source, downloading it if needed. Raises NoData."""
