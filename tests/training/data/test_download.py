import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from training.core.errors import CannotTrain
from training.core.sources import Archive, Source
from training.data.download import Fetcher


class Shelf(ThreadingHTTPServer):
    """A server of bytes by path that knows ranges and can cut a connection after so many bytes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Shelf.Handler)
        self.files: dict[str, bytes] = {}
        self.cut_after: list[int] = []
        self.ranges: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            shelf = self.server
            shelf.ranges.append(self.headers.get("Range"))
            content = shelf.files.get(self.path)
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
            end = start + shelf.cut_after.pop(0) if shelf.cut_after else len(content)
            self.wfile.write(content[start:end])

        def log_message(self, *arguments):
            pass


@pytest.fixture
def shelf():
    server = Shelf()
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
    shelf: Shelf, content: bytes, *, sha256: str | None = None, holds: tuple[str, ...] = ("data.csv",)
) -> Source:
    sha256 = hashlib.sha256(content).hexdigest() if sha256 is None else sha256
    official = Archive(f"http://127.0.0.1:{shelf.server_port}/official.tgz", sha256, len(content))
    return Source("things", official, Archive("packs/things.tgz", sha256), holds)


def fetcher(tmp_path, **more) -> Fetcher:
    return Fetcher(tmp_path / "data", say=lambda text: None, wait_s=0.0, **more)


def test_an_archive_is_downloaded_verified_and_unpacked_once(shelf, tmp_path):
    content = shelf.files["/official.tgz"] = tar(**{"inner__data.csv": b"1,2"})
    wanted = source(shelf, content)

    folder = fetcher(tmp_path).fetched(wanted)
    again = fetcher(tmp_path).fetched(wanted)

    assert (folder / "inner" / "data.csv").read_bytes() == b"1,2"
    assert again == folder
    assert len(shelf.ranges) == 1
    assert fetcher(tmp_path).sha256(wanted) == hashlib.sha256(content).hexdigest()


def test_a_download_that_was_cut_goes_on_where_it_was(shelf, tmp_path):
    content = shelf.files["/official.tgz"] = tar(**{"data.csv": bytes(range(256)) * 4000})
    shelf.cut_after = [1000, 500]

    folder = fetcher(tmp_path).fetched(source(shelf, content))

    assert (folder / "data.csv").stat().st_size == 256 * 4000
    assert shelf.ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_what_an_interrupted_program_had_received_is_used_by_the_next_one(shelf, tmp_path):
    content = shelf.files["/official.tgz"] = tar(**{"data.csv": b"abc" * 1000})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".things.official.tgz.partial").write_bytes(content[:50])

    fetcher(tmp_path).fetched(source(shelf, content))

    assert shelf.ranges == ["bytes=50-"]


def test_the_rest_of_another_file_is_noticed(shelf, tmp_path):
    content = shelf.files["/official.tgz"] = tar(**{"data.csv": b"abc" * 1000})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".things.official.tgz.partial").write_bytes(b"of an older release" * 2)

    with pytest.raises(CannotTrain, match="SHA-256"):
        fetcher(tmp_path).fetched(source(shelf, content))
    folder = fetcher(tmp_path).fetched(source(shelf, content))

    assert (folder / "data.csv").exists()


def test_a_file_with_another_hash_is_refused_and_nothing_is_left_of_it(shelf, tmp_path):
    content = shelf.files["/official.tgz"] = tar(**{"data.csv": b"1"})

    with pytest.raises(CannotTrain, match=r"its SHA-256 is .*, not 0000"):
        fetcher(tmp_path).fetched(source(shelf, content, sha256="0000"))

    assert not (tmp_path / "data" / "things").exists()
    assert not [path for path in (tmp_path / "data").iterdir() if path.is_file()]


def test_the_first_digits_of_a_hash_are_enough(shelf, tmp_path):
    content = shelf.files["/official.tgz"] = tar(**{"data.csv": b"1"})

    assert fetcher(tmp_path).fetched(source(shelf, content, sha256=hashlib.sha256(content).hexdigest()[:8])).is_dir()


def test_where_no_hash_is_known_the_one_it_has_is_said(shelf, tmp_path):
    content = shelf.files["/official.tgz"] = tar(**{"data.csv": b"1"})
    said: list[str] = []

    Fetcher(tmp_path / "data", say=said.append).fetched(source(shelf, content, sha256=""))

    assert hashlib.sha256(content).hexdigest() in "".join(said)


def test_an_archive_that_is_not_there_is_an_error_that_says_so_at_once(shelf, tmp_path):
    with pytest.raises(CannotTrain, match=r"things could not be fetched .*404"):
        fetcher(tmp_path).fetched(source(shelf, b"x"))

    assert len(shelf.ranges) == 1


def test_an_archive_without_the_data_is_refused(shelf, tmp_path):
    content = shelf.files["/official.tgz"] = tar(**{"readme.txt": b"moved"})

    with pytest.raises(CannotTrain, match=r"it holds no data\.csv"):
        fetcher(tmp_path).fetched(source(shelf, content))


@pytest.mark.parametrize("remote", [False, True])
def test_the_mirror_is_asked_before_the_official_address(shelf, tmp_path, remote):
    content = tar(**{"data.csv": b"1"})
    mirror = f"http://127.0.0.1:{shelf.server_port}/mirror/" if remote else str(tmp_path / "mirror")
    shelf.files["/mirror/packs/things.tgz"] = content
    (tmp_path / "mirror" / "packs").mkdir(parents=True)
    (tmp_path / "mirror" / "packs" / "things.tgz").write_bytes(content)

    folder = fetcher(tmp_path, mirror=mirror).fetched(source(shelf, content))

    assert (folder / "data.csv").exists()
    assert len(shelf.ranges) == remote
    assert (tmp_path / "mirror" / "packs" / "things.tgz").exists()


@pytest.mark.parametrize("pack", [None, b"something else"])
def test_a_mirror_that_has_it_not_or_wrongly_is_passed_over(shelf, tmp_path, pack):
    content = shelf.files["/official.tgz"] = tar(**{"data.csv": b"1"})
    if pack:
        (tmp_path / "packs").mkdir()
        (tmp_path / "packs" / "things.tgz").write_bytes(pack)
    said: list[str] = []

    Fetcher(tmp_path / "data", str(tmp_path), said.append).fetched(source(shelf, content))

    assert "things not taken from" in said[0]


def test_nothing_is_written_outside_the_folder(shelf, tmp_path):
    content = shelf.files["/official.tgz"] = tar(**{"..__..__evil": b"1", "data.csv": b"1"})

    with pytest.raises(CannotTrain, match="cannot be unpacked"):
        fetcher(tmp_path).fetched(source(shelf, content))

    assert not list(tmp_path.rglob("evil"))


def test_a_zip_file_is_unpacked_too(shelf, tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inner/data.csv", "1")
    content = shelf.files["/official.tgz"] = file.getvalue()

    assert (fetcher(tmp_path).fetched(source(shelf, content)) / "inner" / "data.csv").exists()


def test_a_file_that_is_no_archive_is_kept_as_it_is(shelf, tmp_path):
    content = shelf.files["/official.tgz"] = b"weights"

    assert fetcher(tmp_path).fetched(source(shelf, content, holds=())).read_bytes() == b"weights"
