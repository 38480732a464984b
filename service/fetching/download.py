"""Download versions of models, and check every byte against the manifest before a version appears in the folder.

A version is downloaded into a hidden folder beside its place, which the server does not look at, and renamed when all
of its files are there and have their checksums. An interrupted download is resumed there, also by the next program.
What a manifest lists are names of files, never paths (tasks/manifest.py): nothing is written anywhere else.
"""

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from service.fetching.errors import CannotFetch
from service.fetching.sources import Source
from tasks.manifest import MANIFEST, BrokenModel, FileEntry, Manifest, read_manifest, sha256_of
from tasks.system_errors import is_disk_error
from tasks.version_folder import lock_folder

T = TypeVar("T")
_CHUNK = 1 << 18
_READ_TIMEOUT_S = 30.0
_MAX_MANIFEST_BYTES = 16_000_000
_MAX_WAIT_S = 30.0
_RETRIED = (408, 425, 429)
"""Statuses below 500 after which another attempt may succeed."""


class _TryAgain(Exception):
    """Why an attempt failed that may succeed later."""


@dataclass(frozen=True)
class Fetched:
    """What became of a version.

    Attributes:
        is_new: whether it was downloaded; otherwise it was there already, and was checked.
    """

    folder: Path
    files: int
    size: int
    is_new: bool


@dataclass(frozen=True)
class Downloader:
    """Downloads versions from a source into a folder of models.

    Attributes:
        attempts: how often a file is asked for before the download fails.
        wait_s: seconds before the second attempt; doubled before each further one, up to half a minute.
        deadline: the value of `clock` after which the download fails.
        clock: returns seconds.
        sleep: waits for a number of seconds.
    """

    source: Source
    root: Path
    log: Callable[[str], None] = print
    attempts: int = 5
    wait_s: float = 1.0
    deadline: float = float("inf")
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def fetch(self, name: str, version: str, sha256: str = "") -> Fetched:
        """Make sure that a version is in the folder, complete and unchanged.

        Args:
            name: of the model.
            version: a positive integer.
            sha256: that of its manifest, if it is known; the manifest has those of all other files.

        Raises CannotFetch and OSError.
        """
        home = self.root / name
        home.mkdir(parents=True, exist_ok=True)
        with lock_folder(home):  # Several pods may share a volume.
            target, partial = home / version, home / f".{version}.fetching"
            if (manifest := self._intact(target, sha256)) is None:
                manifest = self._download(f"{name}/{version}", partial, sha256)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
                return _describe(target, manifest, is_new=True)
        return _describe(target, manifest, is_new=False)

    def _intact(self, folder: Path, sha256: str) -> Manifest | None:
        """Return the manifest of a version that is there already; None if it is not there, or not as published."""
        if not (folder / MANIFEST).is_file():
            return None
        try:
            manifest = read_manifest(folder)
        except BrokenModel:
            return None
        is_expected = not sha256 or sha256_of(folder / MANIFEST) == sha256
        if is_expected and all(_has(folder / name, entry) for name, entry in manifest.files.items()):
            return manifest
        self.log(f"{folder}: it is not the version that was published; it is replaced.")
        return None

    def _download(self, path: str, partial: Path, sha256: str) -> Manifest:
        partial.mkdir(exist_ok=True)
        content = self._fetch_manifest(f"{path}/{MANIFEST}", sha256)
        manifest = _parse_manifest(content, path)
        for found in partial.iterdir():  # Of an earlier program, perhaps of another version of this name.
            if found.name.removesuffix(".partial") not in manifest.files:
                found.unlink()
        self._check_space(manifest, partial)
        for name, entry in manifest.files.items():
            if not _has(partial / name, entry):
                self._fetch_file(f"{path}/{name}", partial / name, entry)
        with (partial / MANIFEST).open("wb") as file:  # Last: its presence means that the version is complete.
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return manifest

    def _fetch_manifest(self, path: str, sha256: str) -> bytes:
        def receive() -> bytes:
            with self._open(path, 0) as response:
                content = b""
                # Not `read`, which returns when it has all, however slowly that comes.
                while len(content) <= _MAX_MANIFEST_BYTES and (chunk := response.read1(_CHUNK)):
                    self._check_time(path)
                    content += chunk
                _raise_if_short(response, len(content))
                return content

        content = self._with_retries(path, receive)
        if len(content) > _MAX_MANIFEST_BYTES:
            raise CannotFetch(
                f"{self.source.printable(path)} is larger than {_MAX_MANIFEST_BYTES:,} bytes: no manifest."
            )
        if sha256 and (found := hashlib.sha256(content).hexdigest()) != sha256:
            raise CannotFetch(
                f"{self.source.printable(path)} has the SHA-256 {found}, not {sha256} as expected. Somebody has "
                "changed the version; if that is meant, give the new checksum."
            )
        return content

    def _check_space(self, manifest: Manifest, partial: Path) -> None:
        there = sum(path.stat().st_size for path in partial.iterdir())
        needed, free = sum(entry.size for entry in manifest.files.values()) - there, shutil.disk_usage(partial).free
        if needed > free:
            raise CannotFetch(
                f"{manifest.name}/{manifest.version} needs {needed / 1e6:,.0f} MB more, but {self.root} has "
                f"{free / 1e6:,.0f} MB: give the volume more space."
            )

    def _fetch_file(self, path: str, target: Path, entry: FileEntry) -> None:
        """Download a file, resuming where an earlier attempt, or an earlier program, was interrupted."""
        partial = target.with_name(f"{target.name}.partial")
        resumed = _size(partial) > 0
        self._with_retries(path, lambda: self._receive(path, partial, entry))
        if resumed and not _has(partial, entry):  # The first part may be that of another file.
            partial.unlink(missing_ok=True)
            self._with_retries(path, lambda: self._receive(path, partial, entry))
        if not _has(partial, entry):
            found = sha256_of(partial)
            partial.unlink()
            raise CannotFetch(
                f"{self.source.printable(path)} has the SHA-256 {found}, but the manifest says {entry.sha256}: it is "
                "not the file that was published. Publish the version again, under a new number."
            )
        partial.rename(target)

    def _receive(self, path: str, partial: Path, entry: FileEntry) -> None:
        """Receive what is missing of a file. Raises _TryAgain, CannotFetch and OSError."""
        offset = _size(partial)
        if offset > entry.size:
            partial.unlink()
            offset = 0
        if offset == entry.size and offset:
            return
        try:
            response = self._open(path, offset)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            error.close()
            partial.unlink()  # The server has less than was downloaded: that was another file.
            raise _TryAgain("it is shorter than what was downloaded of it before") from None
        with response:
            offset = offset if response.status == 206 else 0
            with partial.open("ab" if offset else "wb") as file:
                while chunk := response.read1(_CHUNK):
                    self._check_time(path)
                    if file.tell() + len(chunk) > entry.size:
                        file.truncate(0)
                        raise CannotFetch(
                            f"{self.source.printable(path)} is larger than the {entry.size:,} bytes of the manifest: "
                            "it is not the file that was published."
                        )
                    file.write(chunk)
                received = file.tell()
                file.flush()
                os.fsync(file.fileno())
        if received < entry.size:
            raise _TryAgain(f"it ended after {received:,} of {entry.size:,} bytes")

    def _open(self, path: str, offset: int) -> http.client.HTTPResponse:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        request = urllib.request.Request(self.source.address(path))  # noqa: S310 -- http or https, see `parse_source`.
        request.add_header("User-Agent", "sevenfold")
        for name, value in self.source.headers(path, headers, datetime.now(UTC)).items():
            request.add_unredirected_header(name, value)  # Whom a server redirects to does not get credentials.
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_READ_TIMEOUT_S)  # noqa: S310
        return response

    def _with_retries(self, path: str, receive: Callable[[], T]) -> T:
        """Call it until it succeeds, with growing pauses. Raises CannotFetch, and the OSError of a disk."""
        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                self.log(f"{self.source.printable(path)}: {reason}; trying again.")
                self.sleep(min(self.wait_s * 2 ** (attempt - 1), _MAX_WAIT_S))
            self._check_time(path)
            try:
                return receive()
            except _TryAgain as error:
                reason = str(error)
            except (OSError, http.client.HTTPException) as error:
                reason = self._reason_to_try_again(path, error)
        raise CannotFetch(f"{self.source.printable(path)}: {reason}, {self.attempts} times in a row.")

    def _reason_to_try_again(self, path: str, error: Exception) -> str:
        """Return why an attempt failed. Raises CannotFetch, or the error itself, if another one would not help."""
        if is_disk_error(error):
            raise error
        if isinstance(error, urllib.error.HTTPError):
            error.close()
            if error.code < 500 and error.code not in _RETRIED:
                raise CannotFetch(
                    f"{self.source.printable(path)}: {_describe_status(error.code, self.source)}"
                ) from None
            return f"the server answered {error.code}"
        cause = getattr(error, "reason", error)
        if isinstance(cause, PermissionError | FileNotFoundError):  # Of this machine, not of the connection.
            raise error
        return (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__

    def _check_time(self, path: str) -> None:
        if self.clock() > self.deadline:
            raise CannotFetch(f"{self.source.printable(path)}: the time for the download is over (--max-seconds).")


def _parse_manifest(content: bytes, path: str) -> Manifest:
    """Return the manifest of NAME/VERSION. Raises CannotFetch."""
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its text"
        raise CannotFetch(f"{path}/{MANIFEST} is not valid: {where}: {first['msg']}.") from None
    if f"{manifest.name}/{manifest.version}" != path:
        raise CannotFetch(f"{path}/{MANIFEST} is that of {manifest.name}/{manifest.version}, another model or version.")
    return manifest


def _raise_if_short(response: http.client.HTTPResponse, received: int) -> None:
    length = response.headers.get("Content-Length")
    if length is not None and length.isdecimal() and received < min(int(length), _MAX_MANIFEST_BYTES):
        raise _TryAgain(f"it ended after {received:,} of {int(length):,} bytes")


def _describe_status(code: int, source: Source) -> str:
    if code == 404:
        return "404, there is no such file. Are the address, the name and the version right?"
    if code in (401, 403):
        way = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if source.region else "--token-file"
        return f"{code}, access denied. Credentials come from {way}."
    if code in (301, 307) and source.region:
        return f"{code}, the bucket is in another region than {source.region}: set AWS_REGION."
    return f"the server answered {code}."


def _has(path: Path, entry: FileEntry) -> bool:
    with suppress(FileNotFoundError):
        return path.is_file() and path.stat().st_size == entry.size and sha256_of(path) == entry.sha256
    return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _describe(folder: Path, manifest: Manifest, *, is_new: bool) -> Fetched:
    return Fetched(folder, len(manifest.files), sum(entry.size for entry in manifest.files.values()), is_new)
