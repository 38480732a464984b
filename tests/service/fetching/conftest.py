"""A web server of model folders that can fail in the ways that real ones do."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.model_folders import publish
from tests.tiny.tabular import CREDIT, credit_graph


class FileServer(ThreadingHTTPServer):
    """Serves bytes by path, with ranges.

    Attributes:
        files: contents by path, with the slash at its beginning.
        statuses: answers of the next requests, instead of files.
        cut_after: after how many bytes the next responses with a file end.
        requests: path and headers of each request, in order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.statuses: list[int] = []
        self.cut_after: dict[str, list[int]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        if path not in server.files:
            self.send_error(404)
            return
        content, start = server.files[path], int(self.headers.get("Range", "bytes=0-")[6:-1])
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cuts = server.cut_after.get(path)
        self.wfile.write(content[start : start + cuts.pop(0)] if cuts else content[start:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def published(server: FileServer, tmp_path: Path) -> Path:
    """The folder of a version, whose files the server has under /store/credit/1."""
    folder = publish(tmp_path / "published", "credit", CREDIT, credit_graph())
    server.files |= {f"/store/credit/1/{path.name}": path.read_bytes() for path in folder.iterdir()}
    return folder
