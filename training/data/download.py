"""Data sets and weights from their official archives or a mirror: downloaded, verified and unpacked once."""

import hashlib
import http.client
import json
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tasks.manifest import sha256_of
from training.core.errors import NoData
from training.core.sources import Archive, Source

_CHUNK = 1 << 18
_TIMEOUT_S = 30.0
_ATTEMPTS = 5


class _Unusable(Exception):
    """Why a place did not give the file."""


@dataclass(frozen=True)
class Fetcher:
    """Fetches into `folder`, from `mirror` (a folder or an address; empty: none) before anything else."""

    folder: Path
    mirror: str = ""
    say: Callable[[str], None] = print
    wait_s: float = 1.0

    def fetched(self, source: Source) -> Path:
        """The folder (the file) of the source, fetched if it is not here yet.

        Raises NoData: no place gave it, or it is not what it should be.
        """
        target, marker = self.folder / source.name, self.folder / f".{source.name}.complete"
        if marker.exists() and target.exists():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        reasons = []
        for archive, place in self._places(source):
            try:
                self._obtain(source, archive, place, target, marker)
                return target
            except _Unusable as reason:
                reasons.append(f"{place}: {reason}")
                self.say(f"{source.name} not taken from {reasons[-1]}")
        raise NoData(f"{source.name} could not be fetched ({'; '.join(reasons)}).")

    def sha256(self, source: Source) -> str:
        """The hash of the archive that the source was fetched from."""
        facts: dict[str, str] = json.loads((self.folder / f".{source.name}.complete").read_text())
        return facts["sha256"]

    def _places(self, source: Source) -> list[tuple[Archive, str]]:
        places = [(source.official, source.official.address)]
        if self.mirror:
            places.insert(0, (source.mirrored, f"{self.mirror.rstrip('/')}/{source.mirrored.address}"))
        return places

    def _obtain(self, source: Source, archive: Archive, place: str, target: Path, marker: Path) -> None:
        file = Path(place)
        remote = place.startswith(("http://", "https://"))
        if remote:
            file = self.folder / f".{source.name}.{place.rpartition('/')[2]}"
            self._download(place, archive, file)
        elif not file.is_file():
            raise _Unusable("there is no such file")
        got = _verified(file, archive)
        if not archive.sha256:
            self.say(f"{place}: SHA-256 {got} (no hash to compare with is known for this address)")
        if source.holds:
            _unpack(file, target, source.holds)
        else:
            shutil.copyfile(file, target.with_name(target.name + ".partial"))
            target.with_name(target.name + ".partial").replace(target)
        marker.write_text(json.dumps({"from": place, "sha256": got}) + "\n")
        if remote:
            file.unlink()

    def _download(self, address: str, archive: Archive, file: Path) -> None:
        """Downloads to `file`, going on where an earlier attempt was cut."""
        partial = file.with_name(file.name + ".partial")
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(self.wait_s * 2 ** (attempt - 1))
            resumed = partial.exists()
            try:
                whole = _receive(address, archive, partial)
                if whole:
                    if resumed:  # The rest may be that of another file than the beginning.
                        _verified(partial, archive)
                    partial.replace(file)
                    return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500:
                    raise _Unusable(f"the server answers {error.code} {error.reason}") from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                if attempt + 1 == _ATTEMPTS:
                    raise _Unusable(f"the download failed: {reason}") from None
        raise _Unusable(f"the download was cut {_ATTEMPTS} times")


def _receive(address: str, archive: Archive, partial: Path) -> bool:
    """Receives what is missing of the file; whether it is whole."""
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "sevenfold-training", "Accept-Encoding": "identity"}
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 -- http or https, says `_obtain`.
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != 416:  # The range is not there: the file is whole, or it is another one.
            raise
        error.close()
        if archive.size == have:
            return True
        partial.unlink()
        return False
    with response:
        have = have if response.status == 206 else 0
        length = int(response.headers.get("Content-Length") or 0)
        total = have + length if length else archive.size
        with partial.open("ab" if have else "wb") as file, _bar(address, have, total) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if archive.size and file.tell() > archive.size:
                    break
            return not total or file.tell() >= total


def _bar(address: str, have: int, total: int) -> "tqdm[None]":
    title = address.rpartition("/")[2][:40]
    return tqdm(desc=title, initial=have, total=total or None, unit="B", unit_scale=True, leave=False, disable=None)


def _verified(file: Path, archive: Archive) -> str:
    """The file's SHA-256; a file that is not the archive is removed, if it was downloaded, and reported."""
    size, got = file.stat().st_size, sha256_of(file)
    if archive.size and size != archive.size:
        problem = f"it has {size:,} bytes, not {archive.size:,}"
    elif not got.startswith(archive.sha256):
        problem = f"its SHA-256 is {got}, not {archive.sha256}"
    else:
        return got
    if file.name.startswith("."):
        file.unlink()
    raise _Unusable(problem)


def _unpack(file: Path, target: Path, holds: tuple[str, ...]) -> None:
    """Unpacks beside the target and renames, so that a folder that is there is whole."""
    partial = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                archive.extractall(partial)  # noqa: S202 -- zipfile keeps to the folder by itself.
        else:
            with tarfile.open(file) as tar:
                # Nothing outside the folder, no devices, no odd rights.
                tar.extractall(partial, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _Unusable(f"it cannot be unpacked: {error}") from None
    missing = [pattern for pattern in holds if not any(partial.rglob(pattern))]
    if missing:
        shutil.rmtree(partial)
        raise _Unusable(f"it holds no {', '.join(missing)}")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def content_hash(paths: list[Path], root: Path) -> str:
    """A SHA-256 of these files' names (relative to `root`) and contents: which data this was."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()
