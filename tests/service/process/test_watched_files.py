"""Files that are used again when they change: complete changes only, failures once, whatever the file system does."""

import logging
import os
from pathlib import Path

import pytest

from service.process.watched_files import Contents, UnusableFile, WatchedFiles


class Consumer:
    """Uses contents that are texts of digits.

    Attributes:
        used: what it used, in order.
        failures: how often a change could not be used.
    """

    def __init__(self, *paths: Path) -> None:
        self.used: list[str] = []
        self.failures = 0
        self.files = WatchedFiles("numbers", paths, self._use, self._count)

    def _use(self, contents: Contents) -> None:
        text = b" ".join(contents).decode()
        if not text.replace(" ", "").isdigit():
            raise UnusableFile("That is no number.")
        self.used.append(text)

    def _count(self) -> None:
        self.failures += 1

    def check(self, times: int = 2) -> None:
        for _ in range(times):
            self.files.check()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "numbers"
    path.write_text("1")
    return path


@pytest.fixture
def consumer(path: Path) -> Consumer:
    consumer = Consumer(path)
    consumer.files.load()
    return consumer


def test_contents_are_used_once_however_often_they_are_read(path: Path, consumer: Consumer) -> None:
    consumer.check(5)
    path.write_text("2")
    consumer.check(5)

    assert consumer.used == ["1", "2"]


def test_a_file_that_is_being_written_is_not_used_until_it_stays_the_same(path: Path, consumer: Consumer) -> None:
    for text in ("", "2", "23", "234"):
        path.write_text(text)
        consumer.check(1)
    consumer.check(1)

    assert consumer.used == ["1", "234"]
    assert consumer.failures == 0


def test_files_that_are_replaced_by_a_symbolic_link_as_kubernetes_does_are_read_again(tmp_path: Path) -> None:
    for version in (1, 2):
        (tmp_path / f"..{version}").mkdir()
        for name in ("a", "b"):
            (tmp_path / f"..{version}" / name).write_text(str(version))
            os.utime(tmp_path / f"..{version}" / name, (0, 0))
    (tmp_path / "..data").symlink_to("..1")
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    consumer = Consumer(tmp_path / "a", tmp_path / "b")
    consumer.files.load()

    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    consumer.check()

    assert consumer.used == ["1 1", "2 2"]


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("x")], ids=["gone", "invalid"])
def test_a_change_that_cannot_be_used_is_reported_once_and_changes_nothing(
    path: Path, consumer: Consumer, change, caplog: pytest.LogCaptureFixture
) -> None:
    change(path)
    consumer.check(6)

    assert consumer.used == ["1"]
    assert consumer.failures == 1
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.fields["file"] == "numbers"  # type: ignore[attr-defined]


def test_each_change_that_cannot_be_used_is_reported_and_the_next_that_can_is_used(
    path: Path, consumer: Consumer
) -> None:
    for text in ("x", "y", "1"):
        path.write_text(text)
        consumer.check()

    assert consumer.failures == 2
    assert consumer.used == ["1", "1"]


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (make_pipe, "is not a regular file."),
        (make_folder, "Is a directory."),
        (Path.unlink, "No such file or directory."),
        (lambda path: path.write_text("1" * 2_000_000), "is larger than 1,000,000 bytes."),
    ],
    ids=["pipe", "folder", "nothing", "too large"],
)
def test_what_is_no_small_file_is_refused_without_waiting(path: Path, change, message: str) -> None:
    change(path)

    with pytest.raises(UnusableFile, match=message):
        Consumer(path).files.load()
