"""Start tracing if the environment asks for it. Without that, nothing of OpenTelemetry is imported.

The variables are those of the OpenTelemetry specification; the SDK reads the others (sampler, headers, limits).
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec

from service.tracing.spans import Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


class TracingUnavailable(RuntimeError):
    """Tracing is asked for, but impossible. The message says what to do."""


def is_requested(environment: Mapping[str, str]) -> bool:
    """Return whether the environment names a collector, and does not turn tracing off."""
    is_off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    is_off = is_off or environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
    return not is_off and any(environment.get(name, "").strip() for name in _ENDPOINTS)


def check_environment(environment: Mapping[str, str]) -> None:
    """Check an environment that names a collector.

    Raises TracingUnavailable if the packages are missing, or the protocol is another one than HTTP.
    """
    variable = next(name for name in _ENDPOINTS if environment.get(name, "").strip())
    endpoint = environment[variable].strip()
    if not endpoint.startswith(("http://", "https://")):
        raise TracingUnavailable(f"{variable} must be a URL such as http://collector:4318, not '{endpoint}'.")
    protocol = next((value for name in _PROTOCOLS if (value := environment.get(name, "").strip())), "http/protobuf")
    if protocol != "http/protobuf":
        raise TracingUnavailable(
            f"Traces are sent by http/protobuf, not by '{protocol}': unset OTEL_EXPORTER_OTLP_PROTOCOL, and name the "
            "collector's HTTP port (4318 by default)."
        )
    if not all(map(_is_installed, _NEEDED)):
        raise TracingUnavailable(
            f"{variable} is set, but the packages for tracing are not installed. "
            "Install them with: pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http; "
            "or unset the variable."
        )


def start_tracing(service_version: str, environment: Mapping[str, str] = os.environ) -> Tracer | None:
    """Return a tracer that sends spans to the collector that the environment names; None if it names none.

    Raises TracingUnavailable if the packages are missing, or the protocol is another one than HTTP.
    """
    if not is_requested(environment):
        return None
    check_environment(environment)
    from service.tracing.opentelemetry import start_exporting

    return start_exporting(service_version, environment)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # A package above it is missing.
        return False
