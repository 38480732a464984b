"""Tokens that a command sends as `Authorization: Bearer TOKEN`: reading them, and refusing what no header may contain.

Sending such a text would fail with an error message of Python's that quotes it.
"""

import re
from pathlib import Path

_TOKEN = re.compile(r"[!-~]+")
"""Visible characters of ASCII, without spaces: more than RFC 6750 allows, and less than a header may contain."""


class UnusableToken(ValueError):
    """A text is no token; the message says where it came from, and does not quote it."""


def read_token(path: Path) -> str:
    """Return the token that a file contains, without the line break at its end. Raises OSError and UnusableToken."""
    return check_token(path.read_bytes().decode("utf-8", "replace").strip(), str(path))


def check_token(text: str, origin: str) -> str:
    """Return a token as it is. Raises UnusableToken if it is none; `origin` says where it came from."""
    if not _TOKEN.fullmatch(text):
        raise UnusableToken(
            f"{origin} contains no token: that is one line without spaces, as a file has it that contains nothing else."
        )
    return text
