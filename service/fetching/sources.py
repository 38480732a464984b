"""Where models come from: HTTP(S) or S3, by a prefix under which lie NAME/VERSION/manifest.json and the other files.

    https://models.example.com/sevenfold     a web server, or a public bucket; a query (?token) is sent with every file
    s3://bucket/folder                       S3's own HTTP API, or that of another store (AWS_ENDPOINT_URL)

S3 requests are signed (AWS Signature Version 4) with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN;
without these they are not signed. Other ways to get credentials (roles of a node or a service account) are not
implemented.
"""

import hashlib
import hmac
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from service.fetching.errors import CannotFetch

_EMPTY_BODY = hashlib.sha256(b"").hexdigest()
_DEFAULT_REGION = "us-east-1"


@dataclass(frozen=True)
class Credentials:
    """Credentials of S3."""

    key_id: str
    secret: str = field(repr=False)
    session_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Source:
    """A prefix of addresses.

    Attributes:
        base: the URL that a file's path is appended to, without a slash at the end.
        query: what follows the question mark of every address.
        region: that of S3; empty for a web server.
        credentials: those of S3, if any.
        token: sent to a web server as `Authorization: Bearer TOKEN`; empty for none.
    """

    base: str
    query: str = field(default="", repr=False)
    region: str = ""
    credentials: Credentials | None = None
    token: str = field(default="", repr=False)

    def address(self, path: str) -> str:
        """Return the URL of a file."""
        query = f"?{self.query}" if self.query else ""
        return f"{self.printable(path)}{query}"

    def printable(self, path: str) -> str:
        """Return the URL of a file without its query, which may be secret."""
        return f"{self.base}/{urllib.parse.quote(path)}"

    def headers(self, path: str, headers: Mapping[str, str], now: datetime) -> dict[str, str]:
        """Return the headers of a request: the given ones, and those that prove who asks."""
        if self.credentials:
            return sign(self.address(path), headers, self.credentials, self.region, now)
        return dict(headers) | ({"Authorization": f"Bearer {self.token}"} if self.token else {})


def parse_source(text: str, environment: Mapping[str, str], token: str = "") -> Source:
    """Return the source of an address, with credentials from the environment. Raises CannotFetch."""
    parts = urllib.parse.urlsplit(text)
    if parts.scheme in ("http", "https") and parts.hostname:
        if parts.username is not None:
            raise CannotFetch("The address contains a user name or password: put a token into --token-file instead.")
        base = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        return Source(base, parts.query, token=token)
    if parts.scheme == "s3" and parts.netloc:
        return _s3_source(parts.netloc, parts.path.strip("/"), environment)
    raise CannotFetch(
        f"--from must begin with https://HOST, http://HOST or s3://BUCKET, not '{text.partition('?')[0]}'."
    )


def _s3_source(bucket: str, folder: str, environment: Mapping[str, str]) -> Source:
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or _DEFAULT_REGION
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    base = f"{(endpoint or f'https://s3.{region}.amazonaws.com').rstrip('/')}/{bucket}"
    if folder:
        base = f"{base}/{urllib.parse.quote(folder)}"
    key_id, secret = environment.get("AWS_ACCESS_KEY_ID", ""), environment.get("AWS_SECRET_ACCESS_KEY", "")
    if bool(key_id) != bool(secret):
        raise CannotFetch("Set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither for a public bucket.")
    credentials = Credentials(key_id, secret, environment.get("AWS_SESSION_TOKEN", "")) if key_id else None
    return Source(base, region=region, credentials=credentials)


def sign(
    address: str, headers: Mapping[str, str], credentials: Credentials, region: str, now: datetime
) -> dict[str, str]:
    """Return the headers of a GET request, signed by AWS Signature Version 4.

    As "Authenticating Requests: Using the Authorization Header" in the reference of Amazon S3 describes it.
    """
    parts = urllib.parse.urlsplit(address)
    stamp = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    signed = dict(headers) | {"x-amz-date": stamp, "x-amz-content-sha256": _EMPTY_BODY}
    if credentials.session_token:
        signed["x-amz-security-token"] = credentials.session_token
    by_name = {"host": parts.netloc} | {name.lower(): " ".join(value.split()) for name, value in signed.items()}
    names = ";".join(sorted(by_name))
    lines = "".join(f"{name}:{by_name[name]}\n" for name in sorted(by_name))
    request = f"GET\n{parts.path or '/'}\n\n{lines}\n{names}\n{_EMPTY_BODY}"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    signed["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.key_id}/{scope},SignedHeaders={names},Signature={signature}"
    )
    return signed
