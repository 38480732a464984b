"""Which files of a folder are read, and what is said about the others."""

import os
from pathlib import Path

import pytest

from training.core.errors import CannotTrain
from training.data.folders import (
    enter_wrapper,
    first_existing,
    list_files,
    list_subfolders,
)


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in list_files(folder, (".txt",)).files]


def test_files_of_an_ending_are_listed_in_any_case_and_at_any_depth(tmp_path: Path) -> None:
    write(tmp_path / "b.TXT", tmp_path / "a.txt", tmp_path / "inner" / "deep" / "c.Txt")

    assert names(tmp_path) == ["a.txt", "b.TXT", "inner/deep/c.Txt"]
    assert list_files(tmp_path, (".txt",)).describe_left_out() == ""


def test_files_that_are_left_out_are_counted_by_reason_in_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", tmp_path / "b.PDF", tmp_path / "c.pdf", tmp_path / "d.doc", tmp_path / "IMG_1")
    write(tmp_path / ".secret.txt", tmp_path / "inner" / ".ipynb_checkpoints" / "a-checkpoint.txt")
    write(tmp_path / "@eaDir" / "a.txt" / "thumb.txt", tmp_path / "__MACOSX" / "a.txt", tmp_path / "Thumbs.db")
    write(tmp_path / "inner" / "._a.txt")

    listing = list_files(tmp_path, (".txt",))

    assert [path.name for path in listing.files] == ["a.txt"]
    assert listing.describe_left_out() == (
        "10 files were left out: 2 ending in .pdf, 1 ending in .doc, 1 without an ending, 1 hidden (.secret.txt), "
        "1 in hidden folders (.ipynb_checkpoints), 2 in folders that other programs made (@eaDir, __MACOSX), "
        "2 made by the operating system (._…, Thumbs.db)."
    )


def test_one_reason_makes_a_simple_sentence(tmp_path: Path) -> None:
    write(*(tmp_path / f"{number}.pdf" for number in range(12)))

    assert list_files(tmp_path, (".txt",)).describe_left_out() == "12 files ending in .pdf were left out."


def test_files_that_belong_beside_the_data_are_not_mentioned(tmp_path: Path) -> None:
    write(tmp_path / "README.md", tmp_path / "LICENSE", tmp_path / "labels.csv", tmp_path / "points.csv")

    assert list_files(tmp_path, (".txt",), known=("points.csv",)).describe_left_out() == ""


def test_many_endings_are_summed_up(tmp_path: Path) -> None:
    write(*(tmp_path / f"a.e{number}" for number in range(9)))

    assert list_files(tmp_path, (".txt",)).describe_left_out().endswith("5 with other endings.")


def test_loops_of_links_end_and_are_mentioned_while_other_links_are_followed(tmp_path: Path) -> None:
    write(
        tmp_path / "elsewhere" / "far.txt", tmp_path / "data" / "class" / "near.txt", tmp_path / "data" / "no" / "x.txt"
    )
    folder = tmp_path / "data" / "class"
    (folder / "up").symlink_to("..")
    (folder / "itself").symlink_to("itself")
    (folder / "gone.txt").symlink_to("nowhere")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)

    listing = list_files(folder, (".txt",))

    assert [path.name for path in listing.files] == ["far.txt", "near.txt"]
    assert "4 files behind links that lead nowhere" in listing.describe_left_out()


def test_folders_named_like_files_are_entered_and_pipes_are_not_opened(tmp_path: Path) -> None:
    write(tmp_path / "x.txt" / "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")

    assert names(tmp_path) == ["x.txt/a.txt"]
    assert "pipe.txt" in list_files(tmp_path, (".txt",)).describe_left_out()


def test_a_folder_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")

    for folder in (tmp_path / "missing", tmp_path / "a.txt"):
        with pytest.raises(CannotTrain, match=r"The folder .* cannot be read: .*\."):
            list_files(folder, (".txt",))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read the folder")
def test_a_folder_of_another_user_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "closed" / "a.txt")
    (tmp_path / "closed").chmod(0o700)
    parents = [path for path in tmp_path.parents if path.stat().st_uid == 0 and not path.stat().st_mode & 0o001]
    modes = {path: path.stat().st_mode for path in (tmp_path, *parents)}
    for path in modes:
        path.chmod(0o755)

    os.seteuid(65_534)
    try:
        with pytest.raises(CannotTrain, match="closed cannot be read: permission denied"):
            list_files(tmp_path, (".txt",))
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


def test_names_of_old_archives_are_counted_and_folders_named_so_are_refused(tmp_path: Path) -> None:
    write(tmp_path / os.fsdecode(b"K\xf6ln.txt"), tmp_path / "a.txt", tmp_path / os.fsdecode(b"gr\xfcn") / "b.txt")

    listing = list_files(tmp_path, (".txt",))

    assert [path.name for path in listing.files] == ["a.txt"]
    assert listing.describe_left_out() == ("2 files whose name, or whose folder's name, is not in UTF-8 were left out.")
    with pytest.raises(CannotTrain, match=r"The name of the folder 'gr\?n' in .* is not in UTF-8\. Rename it\."):
        list_subfolders(tmp_path)


def test_folders_of_systems_and_other_programs_are_no_classes(tmp_path: Path) -> None:
    for name in ("cat", "@eaDir", "__MACOSX", ".git", "$RECYCLE.BIN", "_thumbs", "System Volume Information"):
        (tmp_path / name).mkdir()

    assert [path.name for path in list_subfolders(tmp_path)] == ["cat"]


def test_folders_of_the_split_are_found_in_any_case_and_the_exact_name_comes_first(tmp_path: Path) -> None:
    (tmp_path / "Train").mkdir()
    assert first_existing(tmp_path, ("train", "training")) == tmp_path / "Train"

    (tmp_path / "train").mkdir()
    assert first_existing(tmp_path, ("train", "training")) == tmp_path / "train"
    assert first_existing(tmp_path, ("val",)) is None


def test_the_only_folder_of_an_archive_is_entered_unless_it_is_a_class_itself(tmp_path: Path) -> None:
    write(tmp_path / "archive" / "cat" / "1.txt", tmp_path / "archive" / "dog" / "1.txt")
    assert enter_wrapper(tmp_path, (".txt",)) == tmp_path / "archive"

    write(tmp_path / "archive" / "own.txt")
    assert enter_wrapper(tmp_path, (".txt",)) == tmp_path
