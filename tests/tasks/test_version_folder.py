"""A version of a model appears complete or not at all."""

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.version_folder import write_version


def write_file(folder: Path, version: str) -> None:
    (folder / "manifest.json").write_text(version)


def test_versions_are_numbered_from_1_after_the_highest(tmp_path: Path) -> None:
    home = tmp_path / "models" / "own"

    first = write_version(home, write_file)
    (home / "7").mkdir()
    second = write_version(home, write_file)

    assert (first, second) == (home / "1", home / "8")
    assert (second / "manifest.json").read_text() == "8"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("x"), KeyboardInterrupt()]
)
def test_what_fails_or_is_interrupted_leaves_nothing_of_the_version(tmp_path: Path, error: BaseException) -> None:
    home = tmp_path / "models" / "own"
    write_version(home, write_file)

    def fail(folder: Path, version: str) -> None:
        write_file(folder, version)
        raise error

    with pytest.raises(type(error)):
        write_version(home, fail)
    with pytest.raises(type(error)):
        write_version(tmp_path / "others" / "new", fail)

    assert [path.name for path in home.iterdir()] == ["1"]
    assert not (tmp_path / "others").exists()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "own" / ".1.partial" / "folder").mkdir(parents=True)

    folder = write_version(tmp_path / "own", write_file)

    assert sorted(path.name for path in (tmp_path / "own").rglob("*")) == ["1", "manifest.json"]
    assert (folder / "manifest.json").read_text() == "1"


def test_an_error_of_the_system_without_a_file_names_the_model_s_folder(tmp_path: Path) -> None:
    def fail(folder: Path, version: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as raised:
        write_version(tmp_path / "own", fail)

    assert raised.value.filename == str(tmp_path / "own")


def test_versions_that_are_written_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: write_version(tmp_path / "own", write_file), range(8)))

    assert {folder.name for folder in folders} == set("12345678")
    assert all((folder / "manifest.json").read_text() == folder.name for folder in folders)
