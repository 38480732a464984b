import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from training.core.errors import CannotTrain, NoData
from training.core.sources import Archive, Source
from training.data.download import Fetcher


class FileServer(ThreadingHTTPServer):
    """Serves bytes by path, supports ranges; can fail, and can close a connection after a number of bytes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), FileServer.Handler)
        self.files: dict[str, bytes] = {}
        self.cut_after: list[int] = []
        self.ranges: list[str | None] = []
        self.failures = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server = self.server
            server.ranges.append(self.headers.get("Range"))
            if server.failures:
                server.failures -= 1
                self.send_error(503)
                return
            content = server.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = start + server.cut_after.pop(0) if server.cut_after else len(content)
            self.wfile.write(content[start:end])

        def log_message(self, *arguments):
            pass


@pytest.fixture
def server():
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def tar(**files: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, inner in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/"))
            entry.size = len(inner)
            archive.addfile(entry, io.BytesIO(inner))
    return content.getvalue()


def source(
    server: FileServer, content: bytes, *, sha256: str | None = None, contains: tuple[str, ...] = ("data.csv",)
) -> Source:
    sha256 = hashlib.sha256(content).hexdigest() if sha256 is None else sha256
    official = Archive(f"http://127.0.0.1:{server.server_port}/official.tgz", sha256, len(content))
    return Source("things", official, Archive("packs/things.tgz", sha256), contains)


def fetcher(tmp_path, **options) -> Fetcher:
    return Fetcher(tmp_path / "data", log=lambda text: None, wait_s=0.0, **options)


def test_an_archive_is_downloaded_verified_and_unpacked_once(server, tmp_path):
    content = server.files["/official.tgz"] = tar(**{"inner__data.csv": b"1,2"})
    things = source(server, content)

    folder = fetcher(tmp_path).fetch(things)
    again = fetcher(tmp_path).fetch(things)

    assert (folder / "inner" / "data.csv").read_bytes() == b"1,2"
    assert again == folder
    assert len(server.ranges) == 1
    assert fetcher(tmp_path).sha256(things) == hashlib.sha256(content).hexdigest()


def test_an_interrupted_download_is_resumed(server, tmp_path):
    content = server.files["/official.tgz"] = tar(**{"data.csv": bytes(range(256)) * 4000})
    server.cut_after = [1000, 500]

    folder = fetcher(tmp_path).fetch(source(server, content))

    assert (folder / "data.csv").stat().st_size == 256 * 4000
    assert server.ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_a_partial_file_of_an_earlier_program_is_resumed(server, tmp_path):
    content = server.files["/official.tgz"] = tar(**{"data.csv": b"abc" * 1000})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".things.official.tgz.partial").write_bytes(content[:50])

    fetcher(tmp_path).fetch(source(server, content))

    assert server.ranges == ["bytes=50-"]


def test_a_resumed_download_of_a_changed_file_is_rejected(server, tmp_path):
    content = server.files["/official.tgz"] = tar(**{"data.csv": b"abc" * 1000})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".things.official.tgz.partial").write_bytes(b"of an older release" * 2)

    with pytest.raises(CannotTrain, match="SHA-256"):
        fetcher(tmp_path).fetch(source(server, content))
    folder = fetcher(tmp_path).fetch(source(server, content))

    assert (folder / "data.csv").exists()


def test_a_file_with_another_hash_is_rejected_and_deleted(server, tmp_path):
    content = server.files["/official.tgz"] = tar(**{"data.csv": b"1"})

    with pytest.raises(CannotTrain, match=r"its SHA-256 is .*, not 0000"):
        fetcher(tmp_path).fetch(source(server, content, sha256="0000"))

    assert not (tmp_path / "data" / "things").exists()
    assert not [path for path in (tmp_path / "data").iterdir() if path.is_file()]


def test_a_hash_prefix_is_enough(server, tmp_path):
    content = server.files["/official.tgz"] = tar(**{"data.csv": b"1"})

    assert fetcher(tmp_path).fetch(source(server, content, sha256=hashlib.sha256(content).hexdigest()[:8])).is_dir()


def test_without_a_known_hash_the_actual_hash_is_logged(server, tmp_path):
    content = server.files["/official.tgz"] = tar(**{"data.csv": b"1"})
    lines: list[str] = []

    Fetcher(tmp_path / "data", log=lines.append).fetch(source(server, content, sha256=""))

    assert hashlib.sha256(content).hexdigest() in "".join(lines)


def test_a_missing_archive_is_an_error_without_retries(server, tmp_path):
    with pytest.raises(CannotTrain, match=r"things could not be fetched .*404"):
        fetcher(tmp_path).fetch(source(server, b"x"))

    assert len(server.ranges) == 1


def test_an_archive_without_the_expected_files_is_rejected(server, tmp_path):
    content = server.files["/official.tgz"] = tar(**{"readme.txt": b"moved"})

    with pytest.raises(CannotTrain, match=r"it does not contain data\.csv"):
        fetcher(tmp_path).fetch(source(server, content))


@pytest.mark.parametrize("remote", [False, True])
def test_the_mirror_is_tried_before_the_official_address(server, tmp_path, remote):
    content = tar(**{"data.csv": b"1"})
    mirror = f"http://127.0.0.1:{server.server_port}/mirror/" if remote else str(tmp_path / "mirror")
    server.files["/mirror/packs/things.tgz"] = content
    (tmp_path / "mirror" / "packs").mkdir(parents=True)
    (tmp_path / "mirror" / "packs" / "things.tgz").write_bytes(content)

    folder = fetcher(tmp_path, mirror=mirror).fetch(source(server, content))

    assert (folder / "data.csv").exists()
    assert len(server.ranges) == remote
    assert (tmp_path / "mirror" / "packs" / "things.tgz").exists()


@pytest.mark.parametrize("pack", [None, b"something else"])
def test_a_mirror_without_the_file_or_with_another_one_is_skipped(server, tmp_path, pack):
    content = server.files["/official.tgz"] = tar(**{"data.csv": b"1"})
    if pack:
        (tmp_path / "packs").mkdir()
        (tmp_path / "packs" / "things.tgz").write_bytes(pack)
    lines: list[str] = []

    Fetcher(tmp_path / "data", str(tmp_path), lines.append).fetch(source(server, content))

    assert "things not fetched from" in lines[0]


def test_nothing_is_written_outside_the_folder(server, tmp_path):
    content = server.files["/official.tgz"] = tar(**{"..__..__evil": b"1", "data.csv": b"1"})

    with pytest.raises(CannotTrain, match="cannot be unpacked"):
        fetcher(tmp_path).fetch(source(server, content))

    assert not list(tmp_path.rglob("evil"))


def test_a_zip_file_is_unpacked(server, tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inner/data.csv", "1")
    content = server.files["/official.tgz"] = file.getvalue()

    assert (fetcher(tmp_path).fetch(source(server, content)) / "inner" / "data.csv").exists()


def test_a_file_that_is_not_an_archive_is_kept_unchanged(server, tmp_path):
    content = server.files["/official.tgz"] = b"weights"

    assert fetcher(tmp_path).fetch(source(server, content, contains=())).read_bytes() == b"weights"


def offline_fetcher(tmp_path, pauses, **options) -> Fetcher:
    return Fetcher(tmp_path / "data", log=lambda text: None, sleep=pauses.append, **options)


def weights_at(address: str) -> Source:
    archive = Archive(address, hashlib.sha256(b"weights").hexdigest())
    return Source("net.pth", archive, Archive("pretrained/net.pth", "00"), alternative="use --weights none")


def test_a_refused_connection_says_at_once_what_to_do(tmp_path):
    pauses: list[float] = []

    with pytest.raises(NoData) as refused:
        offline_fetcher(tmp_path, pauses).fetch(weights_at("http://127.0.0.1:9/net-0123.pth"))

    assert str(refused.value) == (
        "net.pth could not be fetched (http://127.0.0.1:9/net-0123.pth: no connection: Connection refused). "
        "Offline? Put net-0123.pth in a folder and name it with --mirror DIR, or use --weights none."
    )
    assert pauses == []


def test_a_server_that_accepts_no_connection_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        address = silent.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(address)  # These fill the backlog; the system drops what comes after them.
        pauses: list[float] = []

        with pytest.raises(NoData, match=r"no connection: none within 0\.2 s.*Offline\?"):
            offline_fetcher(tmp_path, pauses, connect_s=0.2).fetch(weights_at(f"http://127.0.0.1:{address[1]}/net.pth"))

        for client in waiting:
            client.close()
    assert pauses == []


def test_the_time_to_connect_is_shared_by_the_mirror_and_the_official_address(tmp_path):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        address = silent.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(address)
        url = f"http://127.0.0.1:{address[1]}"

        with pytest.raises(NoData, match=r"none within 0\.1 s.*none within 0\.1 s"):
            offline_fetcher(tmp_path, [], connect_s=0.2, mirror=url).fetch(weights_at(f"{url}/net.pth"))

        for client in waiting:
            client.close()


def test_a_name_that_does_not_resolve_is_not_tried_again(tmp_path):
    pauses: list[float] = []

    with pytest.raises(NoData, match=r"no connection: .*Offline\?"):
        offline_fetcher(tmp_path, pauses).fetch(weights_at("https://weights.invalid/net.pth"))

    assert pauses == []


def test_data_that_cannot_be_fetched_is_named_with_another_option_than_weights(server, tmp_path):
    with pytest.raises(NoData) as refused:
        fetcher(tmp_path).fetch(source(server, b"x"))

    assert str(refused.value).endswith(
        "404 Not Found). Put official.tgz in a folder and name it with --mirror DIR, or unpack the data yourself and "
        "name its folder with --data."
    )


def test_the_official_file_in_the_folder_of_the_mirror_is_taken(tmp_path):
    (tmp_path / "usb").mkdir()
    (tmp_path / "usb" / "net-0123.pth").write_bytes(b"weights")

    file = offline_fetcher(tmp_path, [], mirror=str(tmp_path / "usb")).fetch(
        weights_at("http://127.0.0.1:9/net-0123.pth")
    )

    assert file.read_bytes() == b"weights"


def test_a_server_that_fails_is_tried_again_after_growing_pauses(server, tmp_path):
    content = server.files["/official.tgz"] = tar(**{"data.csv": b"1"})
    server.failures = 3
    pauses: list[float] = []

    folder = offline_fetcher(tmp_path, pauses).fetch(source(server, content))

    assert (folder / "data.csv").exists()
    assert pauses == [1.0, 2.0, 4.0]


def test_a_network_that_breaks_during_a_download_is_waited_for(server, tmp_path):
    content = server.files["/official.tgz"] = tar(**{"data.csv": bytes(range(256)) * 4000})
    server.cut_after = [1000]
    pauses: list[float] = []
    things = source(server, content)

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 1:
            server.shutdown()
            server.server_close()  # From here on, the port refuses connections.

    with pytest.raises(NoData, match="the download failed: Connection refused"):
        Fetcher(tmp_path / "data", log=lambda text: None, sleep=pause).fetch(things)

    assert pauses == [1.0, 2.0, 4.0, 8.0]
