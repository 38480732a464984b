"""A collector of traces, on the loopback interface."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_TIMEOUT_S = 60


class Collector:
    """Receives OTLP over HTTP. While `is_free` is not set, requests get no response."""

    def __init__(self) -> None:
        self.exports: list[ExportTraceServiceRequest] = []
        self.is_free = threading.Event()
        self.is_free.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.is_free.wait(_TIMEOUT_S)
                if self.path == "/v1/traces":
                    collector.exports.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self) -> dict[str, list[bytes]]:
        """Return the trace ids of the spans received, by name."""
        found: dict[str, list[bytes]] = {}
        for export in self.exports:
            for resource in export.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        found.setdefault(span.name, []).append(span.trace_id)
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector; it answers what still waits at the end."""
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.is_free.set()
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()
