from pathlib import Path

import pytest

from training.core.errors import CannotTrain
from training.data.text_files import NotText, TextFile, read_text_file


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
    ],
)
def test_encodings_that_show_themselves_are_read(tmp_path: Path, encoding: str, name: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("text,label\nschön,1\n".encode(encoding))

    file = read_text_file(path)

    assert (file.text, file.encoding) == ("text,label\nschön,1\n", name)
    assert file.describe(path) == ([] if name == "UTF-8" else [f"a.txt was read as {name}."])


def test_other_encodings_are_refused_with_the_place_and_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("schön".encode("cp1252"))

    with pytest.raises(
        NotText, match=r"a\.txt is not UTF-8 \(line 1\)\. .*'schön', add --encoding cp1252, .*save the file as UTF-8\."
    ):
        read_text_file(path)


def test_a_mark_tells_the_encoding_before_the_option_does(tmp_path: Path) -> None:
    (tmp_path / "marked.txt").write_bytes("schön".encode("utf-8-sig"))
    (tmp_path / "other.txt").write_bytes("schön".encode("cp1252"))

    assert read_text_file(tmp_path / "marked.txt", "cp1252") == TextFile("schön", "UTF-8")
    assert read_text_file(tmp_path / "other.txt", "cp1252") == TextFile("schön", "CP1252")


def test_utf_16_without_a_mark_is_known_by_digits_and_spaces_in_another_script(tmp_path: Path) -> None:
    text = "текст,метка\nхороший фильм,1\nплохой фильм,0\n"
    (tmp_path / "a.csv").write_bytes(text.encode("utf-16-le"))

    assert read_text_file(tmp_path / "a.csv") == TextFile(text, "UTF-16")


def test_short_and_empty_files_are_utf_8(tmp_path: Path) -> None:
    for content in (b"", b"a", b"\0a"):
        (tmp_path / "a.txt").write_bytes(content)

        assert read_text_file(tmp_path / "a.txt").encoding == "UTF-8"


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotTrain, match="cannot be read: there is no such file"):
        read_text_file(tmp_path / "a.txt")
