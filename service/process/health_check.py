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

_TIMEOUT_S = 4.0


def health_address(environment: Mapping[str, str]) -> str:
    """Return the URL of the liveness endpoint of the server with this environment; health moves to the admin port."""
    admin_port = environment.get("SEVENFOLD_ADMIN_PORT", "")
    has_admin_port = admin_port.isdecimal() and admin_port != "0"
    port = admin_port if has_admin_port else environment.get("SEVENFOLD_PORT", "8000")
    scheme = "https" if environment.get("SEVENFOLD_TLS_CERT") else "http"
    return f"{scheme}://127.0.0.1:{port}/health/live"


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
    except OSError as error:
        return f"{address}: {getattr(error, 'reason', error)}"


if __name__ == "__main__":
    if problem := check(health_address(os.environ)):
        sys.exit(problem)
