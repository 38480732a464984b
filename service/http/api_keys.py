"""API keys: the file that lists them, the check of a request, and the command that makes a new one.

A line of the file is a name and the SHA-256 of a key, `mobile-app sha256:9f86…`. A plain hash, without salt and without
the repetitions that passwords need, is enough for keys with 256 random bits: nobody can try them all, and no two are
equal. It also lets every request be checked, in microseconds.
"""

import argparse
import hashlib
import hmac
import re
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Unauthorized
from service.http.error_responses import error_response, trace_of
from service.process.watched_files import Contents, UnusableFile

_MAX_KEYS = 1_000
"""Every request is compared with all keys, which takes 0.2 ms for so many."""
_MIN_KEY_LENGTH, _MAX_KEY_LENGTH = 32, 512
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"sha256:[0-9A-Fa-f]{64}")
_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_AUTHORIZATION = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)[ \t]*", re.IGNORECASE)
"""The value of the header `Authorization` (RFC 6750, 2.1)."""
_PREFIX = "sevenfold_"
"""How new keys begin, so that programs that search for secrets in code and logs recognise them."""
_FORMAT = "NAME sha256:HASH"
_HOW_TO_MAKE = "'python -m service new-key NAME' prints such a line"
_HOW_TO_SEND = "as 'Authorization: Bearer KEY'."


class ApiKeys:
    """The keys that are valid now. They are replaced as a whole, in any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: tuple[tuple[str, bytes], ...] = ()

    def __len__(self) -> int:
        return len(self._keys)

    def use(self, contents: Contents) -> None:
        """Use the keys of the file from now on. Raises UnusableFile."""
        self._keys = tuple(parse_keys(contents[0], self._path).items())

    def name_of(self, key: bytes) -> str | None:
        """Return the name of a key, or None if it is not valid.

        The time that this takes does not depend on which key it is, or on how much of it is right.
        """
        digest = hashlib.sha256(key).digest()
        name = None
        for candidate, expected in self._keys:
            name = candidate if hmac.compare_digest(digest, expected) else name
        return name

    def authorise(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the name of the key that a request was sent with. Raises Unauthorized."""
        values = [value for name, value in headers if name == b"authorization"]
        if not values:
            raise Unauthorized(f"This server needs an API key, {_HOW_TO_SEND}")
        sent = _AUTHORIZATION.fullmatch(values[0]) if len(values) == 1 else None
        if sent is None:
            raise Unauthorized(f"Send an API key in one header, {_HOW_TO_SEND}", reason="invalid_token")
        key = sent[1]
        name = self.name_of(key) if len(key) <= _MAX_KEY_LENGTH else None
        if name is None:
            raise Unauthorized("The API key is not valid.", reason="invalid_token")
        return name


@dataclass(frozen=True)
class ApiKeyMiddleware:
    """Rejects requests without a valid API key before anything else is done for them, except those for open paths."""

    app: ASGIApp
    keys: ApiKeys
    open_paths: re.Pattern[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 401 without reading its body."""
        if scope["type"] == "http" and not self.open_paths.fullmatch(scope["path"]):
            trace = trace_of(scope)
            try:
                trace.key = self.keys.authorise(scope["headers"])
            except Unauthorized as error:
                await error_response(error, trace)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def parse_keys(contents: bytes, path: Path) -> Mapping[str, bytes]:
    """Return the SHA-256 of each key of a file, by name. Raises UnusableFile, which names the line but not quotes it.

    A line may contain a key by mistake.
    """
    keys: dict[str, bytes] = {}
    for number, line in _lines(contents, path):
        name, _, digest = line.partition(" ")
        digest = digest.strip()
        if not _NAME.fullmatch(name) or not _DIGEST.fullmatch(digest):
            raise UnusableFile(f"{path}, line {number}: this is not {_FORMAT}; {_HOW_TO_MAKE}.")
        value = bytes.fromhex(digest.removeprefix("sha256:"))
        if name in keys or value in keys.values():
            what = "name" if name in keys else "key"
            raise UnusableFile(f"{path}, line {number}: this {what} is on an earlier line, too; remove one of them.")
        keys[name] = value
        if len(keys) > _MAX_KEYS:
            raise UnusableFile(f"{path}: there are more than {_MAX_KEYS:,} keys.")
    if not keys:
        raise UnusableFile(f"{path} contains no keys. A key is a line {_FORMAT}; {_HOW_TO_MAKE}.")
    return keys


def _lines(contents: bytes, path: Path) -> Iterable[tuple[int, str]]:
    """Yield the number and text of each line that is neither blank nor a comment."""
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnusableFile(f"{path} is not a text in UTF-8.") from None
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.replace("\t", " ").strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


class InvalidKey(ValueError):
    """A key, or its name, is not acceptable; the message says why, without quoting the key."""


def new_key(name: str, key: str = "") -> tuple[str, str]:
    """Return a key, by default a new random one, and its line for the file. Raises InvalidKey."""
    if not _NAME.fullmatch(name):
        raise InvalidKey("A name has 1 to 64 letters, digits and . _ @ -, and begins with a letter or digit.")
    key = key or _PREFIX + secrets.token_urlsafe(32)
    if not _MIN_KEY_LENGTH <= len(key) <= _MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise InvalidKey(
            f"A key has {_MIN_KEY_LENGTH} to {_MAX_KEY_LENGTH} letters, digits and . _ ~ + / - (and = at its end), "
            "chosen at random: the hash of a short one can be reversed by trying all."
        )
    return key, f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def new_key_command(arguments: Sequence[str]) -> int:
    """Make a key: print its line for the file to standard output, and the key to standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m service new-key",
        description="Make an API key. Its line for the file of --api-keys-file goes to standard output, so that >> "
        "FILE adds it; the key itself is shown only now, on standard error. The file contains hashes, no keys.",
    )
    parser.add_argument("name", metavar="NAME", help="who uses the key; it is written to the log with each request")
    parser.add_argument("--stdin", action="store_true", help="do not make a key, but read yours from standard input")
    options = parser.parse_args(arguments)
    try:
        own = sys.stdin.readline().strip() if options.stdin else ""
        if options.stdin and not own:
            raise InvalidKey("There is no key on standard input.")
        key, line = new_key(options.name, own)
    except InvalidKey as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(line)
    if not options.stdin:
        print(f"The key, which is not shown again: {key}", file=sys.stderr)
    return 0
