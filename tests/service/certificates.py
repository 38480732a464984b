"""Certificates for tests, of an authority that exists only there."""

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


@dataclass
class Authority:
    """Writes certificates for localhost, and their keys, to `cert.pem` and `key.pem` in a folder."""

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    @property
    def cert(self) -> Path:
        """The file of the certificate."""
        return self.folder / "cert.pem"

    @property
    def key(self) -> Path:
        """The file of the key."""
        return self.folder / "key.pem"

    def issue(self, *, valid_for: timedelta = timedelta(days=30), begins_in: timedelta = timedelta(days=-365)) -> bytes:
        """Write a new certificate and its key, and return the certificate as clients see it (DER)."""
        now = datetime.now(UTC)
        issued = self.authority.issue_cert(
            "localhost", "127.0.0.1", not_before=now + begins_in, not_after=now + valid_for
        )
        chain = [part.bytes() for part in issued.cert_chain_pems]
        issued.private_key_pem.write_to_path(self.key)
        self.cert.write_bytes(b"".join(chain))
        return ssl.PEM_cert_to_DER_cert(chain[0].decode())

    def trust(self) -> ssl.SSLContext:
        """Return what a client trusts that knows the authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context
