"""Texts as people keep them: what is read, what belongs together, and what is refused with a sentence."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.core.errors import CannotTrain
from training.data.splits import validation_split
from training.learners.sentiment.reader import TextRules, Texts, perceptual_hash, read_texts

RULES = TextRules()


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def folder(root: Path, **labels: list[str]) -> Path:
    for label, texts in labels.items():
        for i, text in enumerate(texts):
            written(root / label / f"{i}_{i % 10}.txt", text)
    return root


def table(tmp_path: Path, content: str | bytes, rules: TextRules = RULES, name: str = "a.csv") -> Texts:
    return read_texts(written(tmp_path / name, content), rules)


def test_a_table_is_read_by_the_usual_names_of_its_columns(tmp_path: Path) -> None:
    content = 'id,Review,Sentiment\n1,"good, very",pos\n2,bad,neg\n3,fine,pos\n4,"a\nb",neg\n'

    found = table(tmp_path, content)

    assert found.texts == ("good, very", "bad", "fine", "a\nb")
    assert found.names == ("negative", "positive")
    assert found.labels == (1, 0, 1, 0)
    assert found.notices == ()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_a_byte_order_mark_are_seen(tmp_path: Path, separator: str, mark: bytes) -> None:
    lines = ["text,label", "gut,1", "schön,1", "übel,0", "bad,0"]

    found = table(tmp_path, mark + "\n".join(lines).replace(",", separator).encode())

    assert found.texts == ("gut", "schön", "übel", "bad")
    assert found.names == ("0", "1")


def test_columns_can_be_named(tmp_path: Path) -> None:
    content = "text,what,verdict,film\nx,good,yes,1\nx,bad,no,1\nx,fine,yes,2\nx,awful,no,2\n"

    found = table(tmp_path, content, TextRules("what", "verdict", "film"))

    assert (found.texts, found.names, found.groups) == (
        ("good", "bad", "fine", "awful"),
        ("no", "yes"),
        ("1", "1", "2", "2"),
    )


def test_parquet_may_hold_labels_of_any_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = pl.DataFrame({"text": ["a", "b", "c", "d", "e"], "label": [10.0, 2.0, 10.0, 2.0, float("nan")]})
    frame.write_parquet(path)

    found = read_texts(path, RULES)

    assert (found.names, found.labels, found.unlabelled) == (("2", "10"), (1, 0, 1, 0), ("e",))


def test_rows_without_a_label_are_apart_and_empty_texts_are_left_out(tmp_path: Path) -> None:
    content = "text,label\ngood,a\n,a\nbad,b\nwho knows,\nfine,a\n \t,b\nworse,b\n"

    found = table(tmp_path, content)

    assert found.texts == ("good", "bad", "fine", "worse")
    assert found.unlabelled == ("who knows",)
    assert found.notices == ("2 empty texts were left out.",)


def test_of_the_official_layout_only_train_is_read(tmp_path: Path) -> None:
    root = tmp_path / "aclImdb"
    folder(root / "train", pos=["good", "great"], neg=["bad", "awful"], unsup=["who knows"])
    folder(root / "test", pos=["secret"], neg=["secret too"])
    written(root / "README", "text")

    for given_path in (tmp_path, root, root / "train"):
        found = read_texts(given_path, RULES)

        assert set(found.texts) == {"good", "great", "bad", "awful"}
        assert found.names == ("negative", "positive")
        assert found.unlabelled == ("who knows",)
    assert "'train' was read, not 'test'" in read_texts(root, RULES).notices[0]


def test_neighbours_of_numbered_files_are_a_group_for_each_label(tmp_path: Path) -> None:
    texts = {label: [f"{label} {i}" for i in range(7)] for label in ("pos", "neg")}

    found = read_texts(folder(tmp_path, **texts), TextRules(neighbours=3))

    by_text = dict(zip(found.texts, found.groups, strict=True))
    assert [by_text[f"pos {i}"] for i in range(7)] == ["pos/0"] * 3 + ["pos/1"] * 3 + ["pos/2"]
    assert by_text["neg 0"] == "neg/0"


def test_a_copy_of_a_text_in_another_group_is_left_out(tmp_path: Path) -> None:
    content = "text,label,film\ngood,a,1\nGOOD ,a,2\ngood,a,1\nbad,b,1\nworse,b,2\nfine,a,2\n"

    found = table(tmp_path, content, TextRules(group_column="film"))

    assert found.texts == ("good", "good", "bad", "worse", "fine")
    assert found.notices == ("1 texts were left out: copies of texts in another group.",)


def test_an_unlabelled_copy_of_a_labelled_text_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text,label\nGood film,1\nbad film,0\nfine film,1\ndull film,0\ngood  FILM,\nanother,\n")

    found = read_texts(path, TextRules())

    assert found.unlabelled == ("another",)
    assert "1 unlabelled texts were left out: they have a label elsewhere." in found.notices


def test_copies_of_a_text_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    rows = [f"text number {i % 20},{'ab'[i % 2]}" for i in range(100)] + ["Text  Number 3,b"]

    found = table(tmp_path, "text,label\n" + "\n".join(rows))

    kept = validation_split(found.groups, found.labels, 0.3)
    sides = {perceptual_hash(text): set() for text in found.texts}
    for text, side in zip(found.texts, kept, strict=True):
        sides[perceptual_hash(text)].add(side)
    assert all(len(side) == 1 for side in sides.values())
    assert len(sides) == 20
    assert any(kept)


def test_texts_are_as_the_service_reads_them_and_contradictions_are_noted(tmp_path: Path) -> None:
    found = table(tmp_path, "text,label\ng\0ood,a\nbad,b\ngood,b\nfine,a\n")

    assert found.texts == ("good", "bad", "good", "fine")
    assert found.notices == ("1 texts stand there with more than one label.",)


@given(st.text())
def test_likeness_does_not_see_capitals_and_blanks(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        return

    assert perceptual_hash(f"  {text}\n ") == perceptual_hash(text)


@pytest.mark.parametrize(
    ("content", "rules", "message"),
    [
        ("", RULES, "is empty"),
        ("text,label\n", RULES, "holds no rows"),
        ("text,label\ngood,\nbad,\n", RULES, "holds no text with a label"),
        ("text,label\n,a\n ,b\n", RULES, "holds no text with a label"),
        ("text,label\ngood,a\nbad,a\n", RULES, "texts of one label only, 'a'"),
        ("text,label\ngood,a\nbad,b\nfine,a\n", RULES, "The label 'b' has one text"),
        ("text,label\ngood,a\nbad,b\nfine,a\nbad,b\n", RULES, "The label 'b' has one group of texts"),
        ("title,label\ngood,a\nbad,b\n", RULES, "None of the columns .* with --text-column"),
        ("text,verdict\ngood,a\nbad,b\n", RULES, "None of the columns .* with --label-column"),
        ("text,label\ngood,a\n", TextRules(text_column="words"), "has no column 'words'; its columns are text, label"),
        ("text,label\ngood,a\n", TextRules(group_column="film"), "has no column 'film'"),
        ("text,label\ngood,a\n", TextRules(label_column="text"), "cannot both be in the column 'text'"),
        ("text,label\n" + "".join(f"t{i},{i}\n" for i in range(300)), RULES, "has 300 labels; at most 200"),
        ("text,label\ngut,a\nschön,b\n".encode("latin-1"), RULES, "is not UTF-8"),
        ('text,label\n"good,a\nbad,b\n', RULES, "cannot be read as a table|holds no|None of"),
    ],
)
def test_a_table_that_cannot_be_learnt_from_is_refused(
    tmp_path: Path, content: str | bytes, rules: TextRules, message: str
) -> None:
    with pytest.raises(CannotTrain, match=message) as refused:
        table(tmp_path, content, rules)

    assert str(refused.value).endswith((".", "?"))


def test_numbers_are_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": [1, 2], "label": ["a", "b"]}).write_parquet(path)

    with pytest.raises(CannotTrain, match="holds no texts"):
        read_texts(path, RULES)


def test_folders_that_cannot_be_learnt_from_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotTrain, match="has no folders with"):
        read_texts(tmp_path, RULES)
    folder(tmp_path, pos=["good", "great"])
    with pytest.raises(CannotTrain, match="texts of one label only, 'pos'"):
        read_texts(tmp_path, RULES)
    written(tmp_path / "neg" / "1.txt", "schlecht, übel".encode("latin-1"))
    with pytest.raises(CannotTrain, match=r"1\.txt is not UTF-8 \(see byte 10\)"):
        read_texts(tmp_path, RULES)
    with pytest.raises(CannotTrain, match="neither a table"):
        read_texts(written(tmp_path / "a.json", "{}"), RULES)
