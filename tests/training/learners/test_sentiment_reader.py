"""Reading labelled texts from tables and folders, and grouping them."""

import gzip
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.core.errors import CannotTrain
from training.data.delimited import CsvFormat
from training.data.hash_split import validation_split
from training.learners.sentiment.reader import TextData, TextRules, normalised_hash, read_texts

RULES = TextRules()


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_folder(root: Path, **labels: list[str]) -> Path:
    for label, texts in labels.items():
        for i, text in enumerate(texts):
            write(root / label / f"{i}_{i % 10}.txt", text)
    return root


def read_table(tmp_path: Path, content: str | bytes, rules: TextRules = RULES, name: str = "a.csv") -> TextData:
    return read_texts(write(tmp_path / name, content), rules)


def test_columns_of_a_table_are_found_by_common_names(tmp_path: Path) -> None:
    content = 'id,Review,Sentiment\n1,"good, very",pos\n2,bad,neg\n3,fine,pos\n4,"a\nb",neg\n'

    data = read_table(tmp_path, content)

    assert data.texts == ("good, very", "bad", "fine", "a\nb")
    assert data.names == ("negative", "positive")
    assert data.labels == (1, 0, 1, 0)
    assert data.warnings == ()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_and_byte_order_marks_are_detected_and_said(tmp_path: Path, separator: str, mark: bytes) -> None:
    lines = ["text,label", "gut,1", "schön,1", "übel,0", "bad,0"]

    data = read_table(tmp_path, mark + "\n".join(lines).replace(",", separator).encode())

    assert data.texts == ("gut", "schön", "übel", "bad")
    assert data.names == ("0", "1")
    names = {",": (), ";": ("semicolons",), "\t": ("tabs",), "|": ("vertical bars",)}[separator]
    assert data.warnings == tuple(f"The columns of a.csv are separated by {name}." for name in names)


def test_separator_is_the_one_that_splits_the_names_of_the_columns(tmp_path: Path) -> None:
    content = 'text;label;a,b,c,d\n"good, very";1;x\nbad, so;0;x\nfine, a;1;x\nugly;0;x\n'

    assert read_table(tmp_path, content).texts == ("good, very", "bad, so", "fine, a", "ugly")


def test_table_in_utf_16_is_read_and_said(tmp_path: Path) -> None:
    data = read_table(tmp_path, "text,label\nschön,1\ngut,1\nübel,0\nbad,0\n".encode("utf-16"))

    assert data.texts == ("schön", "gut", "übel", "bad")
    assert data.warnings == ("a.csv was read as UTF-16.",)


def test_labels_that_stand_for_missing_ones_are_no_labels_and_counted(tmp_path: Path) -> None:
    data = read_table(tmp_path, "text,label\ngood,1.0\nbad,0\nfine,1\nugly,0.0\nwho,nan\nwhat,N/A\n")

    assert (data.names, data.labels, data.unlabelled) == (("0", "1"), (1, 0, 1, 0), ("who", "what"))
    assert data.warnings == ("2 rows with the label 'N/A', 'nan' were taken to have none.",)


def test_labels_that_differ_only_in_case_are_one_and_named(tmp_path: Path) -> None:
    data = read_table(tmp_path, "text,label\na,Pos\nb,Pos\nc,pos\ne,neg\nf,neg\n")

    assert (data.names, data.labels) == (("positive", "negative"), (0, 0, 0, 1, 1))
    assert data.warnings == (
        "Labels that differ only in case or spaces are read as one: 'Pos' (2), 'pos' (1) as 'Pos'.",
    )


def test_labels_that_are_all_spellings_of_true_and_false_are_two(tmp_path: Path) -> None:
    data = read_table(tmp_path, "text,label\na,True\nb,True\nc,yes\nd,1\ne,no\nf,False\ng,False\n")

    assert (data.names, data.labels) == (("False", "True"), (1, 1, 1, 1, 0, 0, 0))
    assert data.warnings[0].startswith("The labels are all spellings of true and false")


def test_folders_that_differ_only_in_case_are_one_label_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path, Good=["fine"], good=["good", "great"], bad=["bad", "awful"], yes=["a", "b"], true=["c", "d"])

    data = read_texts(tmp_path, RULES)

    assert data.names == ("bad", "good", "true", "yes")
    assert data.names[data.labels[data.texts.index("fine")]] == "good"
    assert data.warnings == (
        "Labels that differ only in case or spaces are read as one: 'Good' (1), 'good' (2) as 'good'.",
    )


def test_encoding_and_separator_can_be_named(tmp_path: Path) -> None:
    table = "text label\nschön 1\ngut 1\nübel 0\nbad 0\n".encode("cp1252")
    write_folder(tmp_path / "folder", pos=["good"], neg=["bad", "awful"])
    write(tmp_path / "folder" / "pos" / "a.txt", "schön".encode("cp1252"))

    data = read_table(tmp_path, table, TextRules(csv=CsvFormat("space", "cp1252")))
    folder = read_texts(tmp_path / "folder", TextRules(csv=CsvFormat(encoding="cp1252")))

    assert data.texts == ("schön", "gut", "übel", "bad")
    assert data.warnings == ("a.csv was read as CP1252.", "The columns of a.csv are separated by spaces.")
    assert "schön" in folder.texts
    assert folder.warnings == ("2 files of 'neg' were read as CP1252.", "2 files of 'pos' were read as CP1252.")


def test_compressed_table_is_read_and_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    rows = "a,1\nb,1\nc,0\nd,0\n"

    data = read_table(tmp_path, gzip.compress(f"text,label\n{rows}".encode(), mtime=0), name="a.csv.gz")

    assert data.texts == ("a", "b", "c", "d")
    with pytest.raises(CannotTrain, match=r"several columns 'label' \(columns 2 and 3\)"):
        read_table(tmp_path, f"text,label,label\n{rows.replace(',', ',1,')}")


def test_a_text_that_is_longer_than_the_module_csv_reads_hides_no_separator(tmp_path: Path) -> None:
    data = read_table(tmp_path, f"text;label\nfine, so;1\n{'good, ' * 30_000};1\nbad;0\nugly;0\n")

    assert data.labels == (1, 1, 0, 0)


def test_short_names_are_not_written_out_if_that_makes_two_labels_one(tmp_path: Path) -> None:
    data = read_table(tmp_path, "text,label\na,positive\nb,positive\nc,pos\nd,pos\ne,neg\nf,neg\n")

    assert data.names == ("neg", "pos", "positive")


def test_texts_in_capitals_and_in_folders_within_a_label_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path, pos=["good", "great"], neg=["bad", "awful"])
    write(tmp_path / "pos" / "2_2.TXT", "fine")
    write(tmp_path / "neg" / "more" / "2_2.txt", "dull")

    data = read_texts(tmp_path, RULES)

    assert set(data.texts) == {"good", "great", "fine", "bad", "awful", "dull"}
    assert data.warnings == ("Files in folders within a class count for the class: neg/more.",)


def test_files_and_folders_that_are_not_read_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path, pos=["good", "great"], neg=["bad", "awful"], Test=["secret"])
    write(tmp_path / "pos" / "a.rtf", "x")
    write(tmp_path / "neg" / ".ipynb_checkpoints" / "a-checkpoint.txt", "x")
    write(tmp_path / "stray.txt", "x")
    write(tmp_path / "README.txt", "x")
    write(tmp_path / "docs" / "a.pdf", "x")

    data = read_texts(tmp_path, RULES)

    assert set(data.texts) == {"good", "great", "bad", "awful"}
    assert data.warnings == (
        "4 files were left out: 1 ending in .pdf, 1 ending in .rtf, 1 beside the folders that are read (stray.txt), "
        "1 in hidden folders (.ipynb_checkpoints).",
        "Not read as a label, but taken for another split: 'Test'.",
        "Without a .txt file, and therefore no label: 'docs'.",
    )


def test_texts_in_utf_16_are_read_and_others_are_counted_and_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, pos=["good", "great"], neg=["bad", "awful"])
    write(tmp_path / "pos" / "wide.txt", "schön".encode("utf-16"))

    data = read_texts(tmp_path, RULES)

    assert "schön" in data.texts
    assert data.warnings == ("1 file of 'pos' was read as UTF-16.",)
    for name in ("a", "b", "c"):
        write(tmp_path / "neg" / f"{name}.txt", "übel".encode("cp1252"))
    with pytest.raises(CannotTrain, match=r"a\.txt is not UTF-8 .* The same is true of 2 more files there\."):
        read_texts(tmp_path, RULES)


def test_columns_can_be_named(tmp_path: Path) -> None:
    content = "text,what,verdict,film\nx,good,yes,1\nx,bad,no,1\nx,fine,yes,2\nx,awful,no,2\n"

    data = read_table(tmp_path, content, TextRules("what", "verdict", "film"))

    assert (data.texts, data.names, data.groups) == (
        ("good", "bad", "fine", "awful"),
        ("no", "yes"),
        ("1", "1", "2", "2"),
    )


def test_parquet_labels_may_have_any_type(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = pl.DataFrame({"text": ["a", "b", "c", "d", "e"], "label": [10.0, 2.0, 10.0, 2.0, float("nan")]})
    frame.write_parquet(path)

    data = read_texts(path, RULES)

    assert (data.names, data.labels, data.unlabelled) == (("2", "10"), (1, 0, 1, 0), ("e",))


def test_unlabelled_rows_are_kept_apart_and_empty_texts_are_left_out(tmp_path: Path) -> None:
    content = "text,label\ngood,a\n,a\nbad,b\nwho knows,\nfine,a\n \t,b\nworse,b\n"

    data = read_table(tmp_path, content)

    assert data.texts == ("good", "bad", "fine", "worse")
    assert data.unlabelled == ("who knows",)
    assert data.warnings == ("2 empty texts were left out.",)


def test_only_the_train_folder_is_read(tmp_path: Path) -> None:
    root = tmp_path / "aclImdb"
    write_folder(root / "train", pos=["good", "great"], neg=["bad", "awful"], unsup=["who knows"])
    write_folder(root / "test", pos=["secret"], neg=["secret too"])
    write(root / "README", "text")

    for path in (tmp_path, root, root / "train"):
        data = read_texts(path, RULES)

        assert set(data.texts) == {"good", "great", "bad", "awful"}
        assert data.names == ("negative", "positive")
        assert data.unlabelled == ("who knows",)
    assert "'train' was read, not 'test'" in read_texts(root, RULES).warnings[0]


def test_consecutively_numbered_files_of_a_label_are_a_group(tmp_path: Path) -> None:
    texts = {label: [f"{label} {i}" for i in range(7)] for label in ("pos", "neg")}

    data = read_texts(write_folder(tmp_path, **texts), TextRules(files_per_group=3))

    by_text = dict(zip(data.texts, data.groups, strict=True))
    assert [by_text[f"pos {i}"] for i in range(7)] == ["pos/0"] * 3 + ["pos/1"] * 3 + ["pos/2"]
    assert by_text["neg 0"] == "neg/0"


def test_a_copy_of_a_text_in_another_group_is_left_out(tmp_path: Path) -> None:
    content = "text,label,film\ngood,a,1\nGOOD ,a,2\ngood,a,1\nbad,b,1\nworse,b,2\nfine,a,2\n"

    data = read_table(tmp_path, content, TextRules(group_column="film"))

    assert data.texts == ("good", "good", "bad", "worse", "fine")
    assert data.warnings == ("1 texts were left out: copies of texts in another group.",)


def test_an_unlabelled_copy_of_a_labelled_text_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text,label\nGood film,1\nbad film,0\nfine film,1\ndull film,0\ngood  FILM,\nanother,\n")

    data = read_texts(path, TextRules())

    assert data.unlabelled == ("another",)
    assert "1 unlabelled texts were left out: copies of labelled texts." in data.warnings


def test_copies_of_a_text_are_not_split(tmp_path: Path) -> None:
    rows = [f"text number {i % 20},{'ab'[i % 2]}" for i in range(100)] + ["Text  Number 3,b"]

    data = read_table(tmp_path, "text,label\n" + "\n".join(rows))

    is_valid = validation_split(data.groups, data.labels, 0.3)
    sides = {normalised_hash(text): set() for text in data.texts}
    for text, side in zip(data.texts, is_valid, strict=True):
        sides[normalised_hash(text)].add(side)
    assert all(len(side) == 1 for side in sides.values())
    assert len(sides) == 20
    assert any(is_valid)


def test_control_characters_are_removed_and_contradicting_labels_are_noted(tmp_path: Path) -> None:
    data = read_table(tmp_path, "text,label\ng\0o\x07od,a\nbad,b\ngood,b\nfine,a\n")

    assert data.texts == ("good", "bad", "good", "fine")
    assert data.warnings == ("a.csv: 1 zero byte was left out.", "1 texts occur with more than one label.")


@given(st.text())
def test_hash_ignores_whitespace_at_the_ends(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        return

    assert normalised_hash(f"  {text}\n ") == normalised_hash(text)


@pytest.mark.parametrize(
    ("content", "rules", "message"),
    [
        ("", RULES, "is empty"),
        ("text,label\n", RULES, "has no rows"),
        ("text,label\ngood,\nbad,\n", RULES, "contains no text with a label"),
        ("text,label\n,a\n ,b\n", RULES, "contains no text with a label"),
        ("text,label\ngood,a\nbad,a\n", RULES, "texts of one label only, 'a'"),
        ("text,label\ngood,a\nbad,b\nfine,a\n", RULES, "The label 'b' has one text"),
        (
            "text,label\ngood,positive\nfine,positive\nnice,postive\nbad,negative\npoor,negative\n",
            RULES,
            r"The label 'postive' has one text; .* If it is a misspelling of 'positive' \(2\), correct it\.",
        ),
        ("text,label\ngood,class_1\nfine,class_1\nbad,class_2\n", RULES, r"to validate on\.$"),
        ("text,label\ngood,a\nbad,b\nfine,a\nbad,b\n", RULES, "The label 'b' has one group of texts"),
        ("title,label\ngood,a\nbad,b\n", RULES, "None of the columns .* with --text-column"),
        ("reviews,label\ngood,a\nbad,b\n", RULES, "with --text-column, such as --text-column 'reviews'"),
        ("text,label\ngood, so,a\nbad,b\n", RULES, "Put texts that contain the separator in quotation marks"),
        ("text,verdict\ngood,a\nbad,b\n", RULES, "None of the columns .* with --label-column"),
        ("text,label\ngood,a\n", TextRules(text_column="words"), "has no column 'words'; its columns are text, label"),
        ("text,label\ngood,a\n", TextRules(label_column="labels"), r"no column 'labels'; .* Did you mean 'label'\?"),
        ("text,label\ngood,a\n", TextRules(group_column="film"), "has no column 'film'"),
        ("text,label\ngood,a\n", TextRules(label_column="text"), "cannot both be in the column 'text'"),
        ("text,label\n" + "".join(f"t{i},{i}\n" for i in range(300)), RULES, "has 300 labels; at most 200"),
        ("text,label\ngut,a\nschön,b\n".encode("latin-1"), RULES, "is not UTF-8"),
        ('text,label\n"good,a\nbad,b\n', RULES, "cannot be read as a table|contains no|None of"),
    ],
)
def test_unusable_table_gets_a_clear_error(
    tmp_path: Path, content: str | bytes, rules: TextRules, message: str
) -> None:
    with pytest.raises(CannotTrain, match=message) as caught:
        read_table(tmp_path, content, rules)

    assert str(caught.value).endswith((".", "?"))


def test_column_of_numbers_is_not_accepted_as_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"text": [1, 2], "label": ["a", "b"]}).write_parquet(path)

    with pytest.raises(CannotTrain, match="contains no texts"):
        read_texts(path, RULES)


def test_unusable_folder_gets_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CannotTrain, match="has no subfolders with"):
        read_texts(tmp_path, RULES)
    write_folder(tmp_path, pos=["good", "great"])
    with pytest.raises(CannotTrain, match="texts of one label only, 'pos'"):
        read_texts(tmp_path, RULES)
    write(tmp_path / "neg" / "1.txt", "schlecht, übel".encode("latin-1"))
    with pytest.raises(CannotTrain, match=r"1\.txt is not UTF-8 \(line 1\)\. .* 'übel', add --encoding cp1252"):
        read_texts(tmp_path, RULES)
    with pytest.raises(CannotTrain, match="neither a table"):
        read_texts(write(tmp_path / "a.json", "{}"), RULES)
    with pytest.raises(CannotTrain, match="There is no file or folder"):
        read_texts(tmp_path / "missing.csv", RULES)
