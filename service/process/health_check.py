"""`python -m service.process.health_check`: ask the server in this container whether it is live (Docker, Compose).

It imports nothing of the server, so that a check every few seconds costs little. Where the server listens is read from
the server's environment variables; flags on its command line are not known here. Kubernetes has probes of its own.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException

_TIMEOUT_S = 4.0
_PORT = 8000


def health_address(environment: Mapping[str, str]) -> str:
    """Return the URL of the liveness endpoint of the server with this environment."""

    def port_of(name: str, default: int) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdecimal() else default  # Kubernetes can set an address, which the server ignores.

    port, admin_port = port_of("SEVENFOLD_PORT", _PORT), port_of("SEVENFOLD_ADMIN_PORT", 0)
    has_tls = bool(environment.get("SEVENFOLD_TLS_CERT"))
    return local_address(environment.get("SEVENFOLD_HOST", ""), port, admin_port, has_tls=has_tls)


def local_address(host: str, port: int, admin_port: int, *, has_tls: bool) -> str:
    """Return the URL of the liveness endpoint of a server on this machine; health moves to the admin port."""
    loopback = "[::1]" if ":" in host else "127.0.0.1"
    return f"{'https' if has_tls else 'http'}://{loopback}:{admin_port or port}/health/live"


def check(address: str) -> str | None:
    """Return why the server at this address is not live, or None if it is."""
    # The certificate names the host that clients use, which is not 127.0.0.1; no secret is sent.
    context = ssl._create_unverified_context() if address.startswith("https:") else None  # noqa: S323
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S, context=context):  # noqa: S310 -- http or https
            return None
    except urllib.error.HTTPError as error:
        with error:
            return f"{address}: {error.code} {error.read(2_000).decode(errors='replace')}"
    except (OSError, HTTPException) as error:  # The second one if another program answers, which does not speak HTTP.
        return f"{address}: {getattr(error, 'reason', error)}"


if __name__ == "__main__":
    if problem := check(health_address(os.environ)):
        sys.exit(problem)
