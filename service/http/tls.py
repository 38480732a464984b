"""The certificate of the server: reading it, replacing it while the server runs, and when it expires."""

import logging
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from service.process.watched_files import Contents, UnusableFile

_LOG = logging.getLogger(__name__)
_CERTIFICATE, _PRIVATE_KEY = b"-----BEGIN CERTIFICATE-----", b"PRIVATE KEY-----"
_END = b"-----END CERTIFICATE-----"
_ENCRYPTED = (b"BEGIN ENCRYPTED PRIVATE KEY", b"Proc-Type: 4,ENCRYPTED")
_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17
"""Tags of ASN.1's DER (ITU-T X.690) within a certificate (RFC 5280, 4.1)."""


class ServerCertificate:
    """A certificate chain and its private key, in files that may change.

    Attributes:
        context: the context to accept connections with. Each handshake uses the certificate that is valid then, and
            connections that exist keep theirs.
        expires_at: when the certificate expires, in seconds since 1970.
    """

    def __init__(self, certificate: Path, key: Path, now: Callable[[], float] = time.time) -> None:
        self._paths = certificate, key
        self._now = now
        self._current: ssl.SSLContext | None = None
        self.context = _new_context()
        self.context.sni_callback = self._choose  # It is called for clients that send no name as well.
        self._not_before = self.expires_at = 0.0

    def use(self, contents: Contents) -> None:
        """Use the certificate and key of the files from the next handshake on. Raises UnusableFile."""
        self.load(contents)
        if problem := self.problem:
            fields = {"file": str(self._paths[0]), "from": _text(self._not_before), "until": _text(self.expires_at)}
            _LOG.warning(
                "the certificate %s, so that clients refuse to connect; replace it", problem, extra={"fields": fields}
            )

    def load(self, contents: Contents) -> None:
        """Do the same without a warning if the certificate is not valid now.

        They are loaded into a context of their own, so that a failure leaves the one in use as it is.
        """
        loaded, (self._not_before, self.expires_at) = self._load_context(*contents), validity(contents[0])
        self._current = loaded

    @property
    def problem(self) -> str | None:
        """Why clients refuse the certificate now, as the end of a sentence; None if its time is right."""
        if self._now() > self.expires_at:
            return "has expired"
        return "is not valid yet" if self._now() < self._not_before else None

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if self._current is not None:
            connection.context = self._current

    def _load_context(self, certificate: bytes, key: bytes) -> ssl.SSLContext:
        certificate_path, key_path = self._paths
        if _CERTIFICATE not in certificate:
            raise UnusableFile(f"{certificate_path} contains no certificate in PEM format.")
        if _PRIVATE_KEY not in key:
            raise UnusableFile(f"{key_path} contains no private key in PEM format.")
        if any(mark in key for mark in _ENCRYPTED):
            raise UnusableFile(
                f"The private key in {key_path} is encrypted; remove its password: openssl pkey -in KEY -out NEW_KEY."
            )
        context = _new_context()
        try:
            context.load_cert_chain(certificate_path, key_path, password="")
        except ssl.SSLError as error:
            raise UnusableFile(_reason(error, certificate_path, key_path)) from None
        except OSError as error:  # A file that has vanished since it was read.
            raise UnusableFile(f"Cannot read {certificate_path} or {key_path}: {error.strerror}.") from None
        return context


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _reason(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"The private key in {key} does not belong to the certificate in {certificate}."
    return f"The certificate in {certificate} or the private key in {key} cannot be used: {error.reason or error}."


def validity(certificate: bytes) -> tuple[float, float]:
    """Return from when and until when the first certificate of a PEM file is valid, in seconds since 1970.

    Raises UnusableFile if it is no certificate. Python's `ssl` tells these times only of the certificates of others.
    """
    try:
        start = certificate.index(_CERTIFICATE)
        text = certificate[start : certificate.index(_END, start) + len(_END)].decode("ascii")
        _, body, _ = _element(ssl.PEM_cert_to_DER_cert(text))
        _, fields, _ = _element(body)  # version, serial number, signature, issuer, validity, …
        tag, _, rest = _element(fields)
        for _ in range(3 if tag == _VERSION else 2):
            _, _, rest = _element(rest)
        tag, times, _ = _element(rest)
        if tag != _SEQUENCE:
            raise ValueError("The validity is not where it should be.")
        first, not_before, rest = _element(times)
        second, not_after, _ = _element(rest)
        return _time(first, not_before), _time(second, not_after)
    except (ValueError, IndexError):
        raise UnusableFile("The certificate is damaged: its validity cannot be read.") from None


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return tag and contents of the first element, and what follows it. Raises ValueError or IndexError."""
    tag, length, start = data[0], data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if start + length > len(data):
        raise ValueError("The element is cut off.")
    return tag, data[start : start + length], data[start + length :]


def _time(tag: int, contents: bytes) -> float:
    """Return a time in seconds since 1970; the years of a UTCTime are those from 1950 to 2049."""
    text = contents.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _text(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
