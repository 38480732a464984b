"""Download data sets and weights from official archives or a mirror; verify and unpack them once.

Without a network, the user is told what to do within seconds: a download is tried again after it was interrupted, or
the server failed, but not if no connection could be made.
"""

import functools
import hashlib
import http.client
import json
import shutil
import tarfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tasks.manifest import sha256_of
from tasks.system_errors import is_disk_error
from training.core.errors import NoData
from training.core.files import write_file
from training.core.sources import Archive, Source

_CHUNK = 1 << 18
_READ_TIMEOUT_S = 30.0
_ATTEMPTS = 5
_CONNECT_S = 4.0
"""Seconds to connect to any of a source's addresses, in total: the lookup of the name, TCP and TLS."""


class _Unavailable(Exception):
    """Why an address did not provide the file."""


class _NoConnection(_Unavailable):
    """Why no connection to a server could be made: this machine may be offline."""


@dataclass(frozen=True)
class Fetcher:
    """Downloads into `folder`; tries `mirror` (a folder or a URL; empty: none) before the official address.

    Attributes:
        wait_s: seconds before the second attempt; doubled before each further one.
        connect_s: seconds after which no more connections are attempted, over all addresses of a source.
        sleep: waits for a number of seconds.
    """

    folder: Path
    mirror: str = ""
    log: Callable[[str], None] = print
    wait_s: float = 1.0
    connect_s: float = _CONNECT_S
    sleep: Callable[[float], None] = time.sleep

    def fetch(self, source: Source) -> Path:
        """Return the folder (or file) of the source, downloading it if needed.

        Raises NoData if no address provides it, or its content is not the expected one.
        """
        target, marker = self.folder / source.name, self.folder / f".{source.name}.complete"
        if marker.exists() and target.exists():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        addresses = self._addresses(source)
        remote = sum(_is_remote(address) for _, address in addresses)
        reasons, offline = [], False
        for archive, address in addresses:
            try:
                self._fetch_from(address, source, archive, target, marker, self.connect_s / max(1, remote))
                return target
            except _Unavailable as reason:
                offline = offline or isinstance(reason, _NoConnection)
                reasons.append(f"{address}: {reason}")
                if len(reasons) < len(addresses):
                    self.log(f"{source.name} not fetched from {reasons[-1]}")
        raise NoData(f"{source.name} could not be fetched ({'; '.join(reasons)}). {_advice(source, offline=offline)}")

    def sha256(self, source: Source) -> str:
        """Return the SHA-256 of the archive that the source was fetched from."""
        facts: dict[str, str] = json.loads((self.folder / f".{source.name}.complete").read_text())
        return facts["sha256"]

    def _addresses(self, source: Source) -> list[tuple[Archive, str]]:
        """Return the addresses to try, in order.

        A mirror's folder may also contain the official file, as somebody downloads it for a machine without a network.
        """
        addresses = [(source.official, source.official.address)]
        if self.mirror:
            mirror = self.mirror.rstrip("/")
            official_copy = f"{mirror}/{_file_name(source.official.address)}"
            if not _is_remote(mirror) and Path(official_copy).is_file():
                addresses.insert(0, (source.official, official_copy))
            addresses.insert(0, (source.mirrored, f"{mirror}/{source.mirrored.address}"))
        return addresses

    def _fetch_from(
        self, address: str, source: Source, archive: Archive, target: Path, marker: Path, connect_s: float
    ) -> None:
        file = Path(address)
        is_remote = _is_remote(address)
        if is_remote:
            file = self.folder / f".{source.name}.{_file_name(address)}"
            self._download(address, archive, file, connect_s)
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

    def _download(self, address: str, archive: Archive, file: Path, connect_s: float) -> None:
        """Download to `file`, resuming where an earlier attempt was interrupted."""
        partial = file.with_name(file.name + ".partial")
        size_before = _size(partial)
        for attempt in range(_ATTEMPTS):
            if attempt:
                self.sleep(self.wait_s * 2 ** (attempt - 1))
            resumed = partial.exists()
            try:
                if _receive(address, archive, partial, connect_s):
                    if resumed:  # The file on the server may have changed since the first part was downloaded.
                        _verify(partial, archive)
                    partial.replace(file)
                    return
            except (OSError, http.client.HTTPException) as error:
                _raise_if_permanent(error, has_begun=_size(partial) > size_before)
                if attempt + 1 == _ATTEMPTS:
                    raise _Unavailable(f"the download failed: {_reason(error)}") from None
        raise _Unavailable(f"the download was interrupted {_ATTEMPTS} times")


def _raise_if_permanent(error: Exception, *, has_begun: bool) -> None:
    """Raise _Unavailable, or the error of a disk, if another attempt would not help.

    A server that cannot be reached is waited for only if part of the file was downloaded before.
    """
    if is_disk_error(error):
        raise error
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code < 500:
            raise _Unavailable(f"the server answers {error.code} {error.reason}") from None
    elif isinstance(error, urllib.error.URLError) and not has_begun:
        raise _NoConnection(f"no connection: {_reason(error)}") from None
    elif isinstance(error, TimeoutError) and not has_begun:
        raise _NoConnection(f"the server did not answer within {_READ_TIMEOUT_S:g} s") from None


def _is_remote(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _file_name(address: str) -> str:
    return address.rpartition("/")[2]


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _reason(error: Exception) -> str:
    """Say in words why a connection was not made or broke."""
    cause = getattr(error, "reason", error)
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__


def _advice(source: Source, *, offline: bool) -> str:
    alternative = f", or {source.alternative}" if source.alternative else ""
    return (
        f"{'Offline? ' if offline else ''}Put {_file_name(source.official.address)} in a folder and name it with "
        f"--mirror DIR{alternative}."
    )


class _Connection(http.client.HTTPConnection):
    """A connection that is made within a limit; the time-out of reading is another one."""

    def __init__(self, *arguments: Any, connect_s: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.connect_s = connect_s

    def connect(self) -> None:
        """Connect. Raises TimeoutError."""
        _run_within(self.connect_s, super().connect)


class _TLSConnection(_Connection, http.client.HTTPSConnection):
    """As `_Connection`, with TLS."""


def _run_within(seconds: float, action: Callable[[], None]) -> None:
    """Run the action in a thread and wait for its end. Raises what it raises, and TimeoutError.

    No time-out of a socket limits the lookup of a name, or several addresses of which each has the whole time-out.
    """
    errors: list[BaseException | None] = []

    def run() -> None:
        try:
            action()
            errors.append(None)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not errors:
        raise TimeoutError(f"none within {seconds:g} s")
    if errors[0]:
        raise errors[0]


class _HTTPHandler(urllib.request.HTTPHandler):
    """Opens connections that are made within a limit."""

    def __init__(self, connect_s: float) -> None:
        super().__init__()
        self.connection = functools.partial(_Connection, connect_s=connect_s)

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Open an address."""
        return self.do_open(self.connection, request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    """As `_HTTPHandler`, with TLS."""

    def __init__(self, connect_s: float) -> None:
        super().__init__()
        self.connection = functools.partial(_TLSConnection, connect_s=connect_s)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Open an address."""
        return self.do_open(self.connection, request)


def _receive(address: str, archive: Archive, partial: Path, connect_s: float) -> bool:
    """Receive the missing part of the file; return whether it is complete."""
    offset = _size(partial)
    opener = urllib.request.build_opener(_HTTPHandler(connect_s), _HTTPSHandler(connect_s))
    headers = {"User-Agent": "sevenfold-training", "Accept-Encoding": "identity"}
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 -- http or https, see `_fetch_from`.
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = opener.open(request, timeout=_READ_TIMEOUT_S)
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
    title = _file_name(address)[:40]
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
