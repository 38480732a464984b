"""Download data sets and weights from official archives or a mirror; verify and unpack them once."""

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
from tasks.system_errors import is_disk_error
from training.core.errors import NoData
from training.core.files import write_file
from training.core.sources import Archive, Source

_CHUNK = 1 << 18
_TIMEOUT_S = 30.0
_ATTEMPTS = 5


class _Unavailable(Exception):
    """Why an address did not provide the file."""


@dataclass(frozen=True)
class Fetcher:
    """Downloads into `folder`; tries `mirror` (a folder or a URL; empty: none) before the official address."""

    folder: Path
    mirror: str = ""
    log: Callable[[str], None] = print
    wait_s: float = 1.0

    def fetch(self, source: Source) -> Path:
        """Return the folder (or file) of the source, downloading it if needed.

        Raises NoData if no address provides it, or its content is not the expected one.
        """
        target, marker = self.folder / source.name, self.folder / f".{source.name}.complete"
        if marker.exists() and target.exists():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        reasons = []
        for archive, address in self._addresses(source):
            try:
                self._fetch_from(address, source, archive, target, marker)
                return target
            except _Unavailable as reason:
                reasons.append(f"{address}: {reason}")
                self.log(f"{source.name} not fetched from {reasons[-1]}")
        raise NoData(f"{source.name} could not be fetched ({'; '.join(reasons)}).")

    def sha256(self, source: Source) -> str:
        """Return the SHA-256 of the archive that the source was fetched from."""
        facts: dict[str, str] = json.loads((self.folder / f".{source.name}.complete").read_text())
        return facts["sha256"]

    def _addresses(self, source: Source) -> list[tuple[Archive, str]]:
        addresses = [(source.official, source.official.address)]
        if self.mirror:
            addresses.insert(0, (source.mirrored, f"{self.mirror.rstrip('/')}/{source.mirrored.address}"))
        return addresses

    def _fetch_from(self, address: str, source: Source, archive: Archive, target: Path, marker: Path) -> None:
        file = Path(address)
        is_remote = address.startswith(("http://", "https://"))
        if is_remote:
            file = self.folder / f".{source.name}.{address.rpartition('/')[2]}"
            self._download(address, archive, file)
        elif not file.is_file():
            raise _Unavailable("no such file")
        sha256 = _verify(file, archive)
        if not archive.sha256:
            self.log(f"{address}: SHA-256 {sha256} (not verified: no hash is known for this address)")
        if source.contains:
            _unpack(file, target, source.contains)
        else:
            partial = target.with_name(target.name + ".partial")
            try:
                shutil.copyfile(file, partial)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            partial.replace(target)
        write_file(marker, json.dumps({"from": address, "sha256": sha256}) + "\n")
        if is_remote:
            file.unlink()

    def _download(self, address: str, archive: Archive, file: Path) -> None:
        """Download to `file`, resuming where an earlier attempt was interrupted."""
        partial = file.with_name(file.name + ".partial")
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(self.wait_s * 2 ** (attempt - 1))
            resumed = partial.exists()
            try:
                if _receive(address, archive, partial):
                    if resumed:  # The file on the server may have changed since the first part was downloaded.
                        _verify(partial, archive)
                    partial.replace(file)
                    return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500:
                    raise _Unavailable(f"the server answers {error.code} {error.reason}") from None
            except (OSError, http.client.HTTPException) as error:
                if is_disk_error(error):
                    raise
                reason = getattr(error, "reason", error)
                if attempt + 1 == _ATTEMPTS:
                    raise _Unavailable(f"the download failed: {reason}") from None
        raise _Unavailable(f"the download was interrupted {_ATTEMPTS} times")


def _receive(address: str, archive: Archive, partial: Path) -> bool:
    """Receive the missing part of the file; return whether it is complete."""
    offset = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "sevenfold-training", "Accept-Encoding": "identity"}
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 -- http or https, see `_fetch_from`.
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416, range not satisfiable: the file is complete, or it is a different one.
            raise
        error.close()
        if archive.size == offset:
            return True
        partial.unlink()
        return False
    with response:
        offset = offset if response.status == 206 else 0
        length = int(response.headers.get("Content-Length") or 0)
        total = offset + length if length else archive.size
        with partial.open("ab" if offset else "wb") as file, _progress_bar(address, offset, total) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if archive.size and file.tell() > archive.size:
                    break
            return not total or file.tell() >= total


def _progress_bar(address: str, offset: int, total: int) -> "tqdm[None]":
    title = address.rpartition("/")[2][:40]
    return tqdm(desc=title, initial=offset, total=total or None, unit="B", unit_scale=True, leave=False, disable=None)


def _verify(file: Path, archive: Archive) -> str:
    """Return the file's SHA-256. Raises _Unavailable, and deletes a downloaded file, if it is not the archive."""
    size, sha256 = file.stat().st_size, sha256_of(file)
    if archive.size and size != archive.size:
        problem = f"its size is {size:,} bytes, not {archive.size:,}"
    elif not sha256.startswith(archive.sha256):
        problem = f"its SHA-256 is {sha256}, not {archive.sha256}"
    else:
        return sha256
    if file.name.startswith("."):
        file.unlink()
    raise _Unavailable(problem)


def _unpack(file: Path, target: Path, contains: tuple[str, ...]) -> None:
    """Unpack to a temporary folder and rename it, so that an existing folder is always complete."""
    partial = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                archive.extractall(partial)  # noqa: S202 -- zipfile does not leave the folder.
        else:
            with tarfile.open(file) as tar:
                # The filter refuses paths outside the folder, devices and unusual permissions.
                tar.extractall(partial, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_disk_error(error):
            raise
        raise _Unavailable(f"it cannot be unpacked: {error}") from None
    missing = [pattern for pattern in contains if not any(partial.rglob(pattern))]
    if missing:
        shutil.rmtree(partial)
        raise _Unavailable(f"it does not contain {', '.join(missing)}")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def content_hash(paths: list[Path], root: Path) -> str:
    """Return a SHA-256 of the names (relative to `root`) and contents of these files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()
