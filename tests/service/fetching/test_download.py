import hashlib
import json
from pathlib import Path

import pytest

from service.fetching.download import Downloader
from service.fetching.errors import CannotFetch
from service.fetching.sources import Source
from tasks.manifest import read_manifest, verify_files
from tests.service.fetching.conftest import FileServer

GRAPH = "/store/credit/1/model.onnx"
MANIFEST = "/store/credit/1/manifest.json"


def downloader(server: FileServer, root: Path, **options: object) -> Downloader:
    return Downloader(
        Source(f"{server.address}/store"), root, log=lambda text: None, sleep=lambda seconds: None, **options
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def visible(root: Path) -> list[str]:
    """What a server sees of a folder of models: it does not look into hidden folders."""
    return sorted(str(path.relative_to(root)) for path in root.glob("*/[!.]*"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    root.mkdir()
    return root


def test_a_version_is_there_as_it_was_published(server, published, root):
    fetched = downloader(server, root).fetch("credit", "1")

    assert contents(root / "credit" / "1") == contents(published)
    assert visible(root) == ["credit/1"]
    assert list(root.rglob(".*")) == []
    assert fetched.is_new
    verify_files(fetched.folder, read_manifest(fetched.folder))


def test_a_version_that_is_there_and_intact_is_not_downloaded_again(server, published, root):
    downloader(server, root).fetch("credit", "1")
    count = len(server.requests)

    again = downloader(server, root).fetch("credit", "1")

    assert not again.is_new
    assert len(server.requests) == count


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json"])
def test_a_version_that_is_there_but_damaged_is_replaced(server, published, root, file):
    folder = downloader(server, root).fetch("credit", "1").folder
    (folder / file).write_bytes(b"damaged")

    again = downloader(server, root).fetch("credit", "1")

    assert again.is_new
    assert contents(folder) == contents(published)


def test_a_wrong_checksum_is_an_error_and_nothing_appears(server, published, root):
    content = server.files[GRAPH]
    server.files[GRAPH] = content[:-1] + bytes([content[-1] ^ 1])

    with pytest.raises(CannotFetch, match=r"model\.onnx has the SHA-256 .* but the manifest says"):
        downloader(server, root).fetch("credit", "1")

    assert visible(root) == []


@pytest.mark.parametrize("change", [lambda content: content + b"x", lambda content: b"x" * 10 * len(content)])
def test_a_file_that_is_larger_than_the_manifest_says_is_not_stored(server, published, root, change):
    size = len(server.files[GRAPH])
    server.files[GRAPH] = change(server.files[GRAPH])

    with pytest.raises(CannotFetch, match="larger than"):
        downloader(server, root).fetch("credit", "1")

    assert visible(root) == []
    assert all(path.stat().st_size <= size for path in root.rglob("model.onnx*"))


def test_a_truncated_file_is_an_error_after_the_last_attempt(server, published, root):
    server.files[GRAPH] = server.files[GRAPH][:100]
    pauses: list[float] = []
    options = {"attempts": 3, "log": lambda text: None, "sleep": pauses.append}

    with pytest.raises(CannotFetch, match=r"shorter than what was downloaded|ended after 100 of"):
        Downloader(Source(f"{server.address}/store"), root, **options).fetch("credit", "1")

    assert visible(root) == []
    assert pauses == [1.0, 2.0]


def test_a_download_that_breaks_off_is_resumed_where_it_ended(server, published, root):
    server.cut_after[GRAPH] = [50, 30]

    downloader(server, root).fetch("credit", "1")

    ranges = [headers.get("range") for path, headers in server.requests if path == GRAPH]
    assert ranges == [None, "bytes=50-", "bytes=80-"]
    assert contents(root / "credit" / "1") == contents(published)


def test_a_download_of_an_earlier_program_is_resumed(server, published, root):
    server.cut_after[GRAPH] = [50]
    with pytest.raises(CannotFetch, match="1 times in a row"):
        downloader(server, root, attempts=1).fetch("credit", "1")
    server.requests.clear()

    downloader(server, root).fetch("credit", "1")

    assert [headers.get("range") for path, headers in server.requests if path == GRAPH] == ["bytes=50-"]
    assert contents(root / "credit" / "1") == contents(published)


def test_what_an_earlier_program_downloaded_of_another_file_is_thrown_away(server, published, root):
    partial = root / "credit" / ".1.fetching"
    partial.mkdir(parents=True)
    (partial / "model.onnx.partial").write_bytes(b"x" * 50)
    (partial / "left.txt").write_text("of another version")

    downloader(server, root).fetch("credit", "1")

    assert contents(root / "credit" / "1") == contents(published)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_for_a_while_is_asked_again(server, published, root, status):
    server.statuses = [status, status]

    downloader(server, root).fetch("credit", "1")

    assert server.paths()[:3] == [MANIFEST] * 3
    assert visible(root) == ["credit/1"]


def test_a_server_that_keeps_failing_is_given_up(server, published, root):
    server.statuses = [503] * 10

    with pytest.raises(CannotFetch, match="the server answered 503, 5 times in a row"):
        downloader(server, root).fetch("credit", "1")

    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("status", "cure"), [(404, "Are the address, the name"), (401, "--token-file"), (403, "--token-file")]
)
def test_what_another_attempt_would_not_help_is_an_error_at_once(server, published, root, status, cure):
    server.statuses = [status]

    with pytest.raises(CannotFetch, match=cure):
        downloader(server, root).fetch("credit", "1")

    assert len(server.requests) == 1


def test_a_server_that_cannot_be_reached_is_named(server, root):
    address = "http://127.0.0.1:1/store"

    with pytest.raises(CannotFetch, match=r"127\.0\.0\.1:1/store/credit/1/manifest\.json: Connection refused"):
        Downloader(Source(address), root, log=lambda text: None, sleep=lambda seconds: None).fetch("credit", "1")


@pytest.mark.parametrize("name", ["../escaped", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", ""])
def test_a_manifest_that_names_a_path_is_refused_and_nothing_is_written(server, published, root, name):
    manifest = json.loads(server.files[MANIFEST])
    manifest["files"][name] = manifest["files"]["model.onnx"]
    server.files[MANIFEST] = json.dumps(manifest).encode()

    with pytest.raises(CannotFetch, match=r"manifest\.json is not valid: files"):
        downloader(server, root).fetch("credit", "1")

    assert visible(root) == []
    assert server.paths() == [MANIFEST]


@pytest.mark.parametrize("change", [{"name": "other"}, {"version": "2"}])
def test_the_manifest_of_another_version_is_refused(server, published, root, change):
    server.files[MANIFEST] = json.dumps(json.loads(server.files[MANIFEST]) | change).encode()

    with pytest.raises(CannotFetch, match="another model or version"):
        downloader(server, root).fetch("credit", "1")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"[]", b"\xff\xfe"])
def test_what_is_no_manifest_is_refused(server, published, root, content):
    server.files[MANIFEST] = content

    with pytest.raises(CannotFetch, match="not valid"):
        downloader(server, root).fetch("credit", "1")


def test_a_pinned_manifest_is_accepted_and_another_one_is_not(server, published, root):
    sha256 = hashlib.sha256(server.files[MANIFEST]).hexdigest()
    downloader(server, root).fetch("credit", "1", sha256)

    with pytest.raises(CannotFetch, match=r"not 0000.* as expected"):
        downloader(server, root).fetch("credit", "1", "0" * 64)

    assert contents(root / "credit" / "1") == contents(published)  # What was there stays.


def test_a_download_ends_when_its_time_is_over(server, published, root):
    times = iter(range(100))

    with pytest.raises(CannotFetch, match="--max-seconds"):
        downloader(server, root, clock=lambda: float(next(times)), deadline=2.0).fetch("credit", "1")

    assert visible(root) == []


def test_a_manifest_that_comes_slowly_does_not_outlast_the_time(server, published, root):
    times = iter(range(100))

    with pytest.raises(CannotFetch, match=r"manifest\.json: the time for the download is over"):
        downloader(server, root, clock=lambda: float(next(times)), deadline=0.5).fetch("credit", "1")


def test_a_volume_that_is_too_small_is_said_before_the_download(server, published, root):
    manifest = json.loads(server.files[MANIFEST])
    manifest["files"]["huge.bin"] = {"sha256": "0" * 64, "size": 10**18}
    server.files[MANIFEST] = json.dumps(manifest).encode()

    with pytest.raises(CannotFetch, match="give the volume more space"):
        downloader(server, root).fetch("credit", "1")

    assert server.paths() == [MANIFEST]
