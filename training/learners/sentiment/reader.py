"""Reads labelled texts from a table or from a folder per label, and groups texts that belong together."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tasks._characters import clean_text
from tasks._tables import MISSING_TEXTS
from tasks.near_names import nearest_name
from training.core.errors import CannotTrain
from training.core.sentences import count_of, join_quoted, list_quoted, was
from training.data.column_names import find_column
from training.data.delimited import RECOGNISED, CsvFormat
from training.data.folders import (
    Listing,
    describe_nested,
    enter_wrapper,
    first_existing,
    list_files,
    list_subfolders,
    wrappers,
)
from training.data.label_names import merge_spellings, suggest_label
from training.data.table_files import read_cells
from training.data.text_files import NotText, read_text_file

_TEXT_COLUMNS = ("text", "review", "sentence", "content", "comment", "body", "message", "tweet", "document")
_LABEL_COLUMNS = ("label", "sentiment", "class", "category", "target", "polarity", "rating")
_TRAIN, _OTHER_SPLITS = ("train", "training"), ("test", "valid", "validation", "val", "dev")
_UNLABELLED = ("unsup", "unlabelled", "unlabeled")
_LONG_NAMES = {"pos": "positive", "neg": "negative"}
_TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
_MAX_LABELS = 200
_TEXT_ENDINGS = (".txt",)
_WHOLE_NUMBER = re.compile(r"-?\d{1,15}(\.0+)?")
_NUMBERED_FILE = re.compile(r"(\d{1,15})(_\d+)?")


@dataclass(frozen=True)
class TextRules:
    """How to find texts.

    Attributes:
        text_column, label_column: columns of a table; empty: guessed from common names.
        group_column: column of a table; texts of one group stay on one side of a split; empty: equal texts are a group.
        files_per_group: for numbered files: this many consecutive numbers are a group; 0: equal texts are a group.
        csv: how the files are written.
    """

    text_column: str = ""
    label_column: str = ""
    group_column: str = ""
    files_per_group: int = 0
    csv: CsvFormat = RECOGNISED


@dataclass(frozen=True)
class TextData:
    """Labelled texts, and texts without a label.

    Attributes:
        texts: cleaned (`tasks/_characters.py`), as the service cleans them too.
        labels: for each text, an index into `names`.
        names: the names of the labels.
        groups: the group of each text; texts of one group stay on one side of a split.
        unlabelled: texts that only a language model can read.
        warnings: sentences for the user about the data.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class _RawTexts:
    """Texts as read. A label of None means unlabelled; a group of None means that equal texts are a group."""

    texts: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, text: str, label: str | None, group: str | None) -> None:
        self.texts.append(clean_text(text).text)
        self.labels.append(label)
        self.groups.append(group)


def read_texts(path: Path, rules: TextRules) -> TextData:
    """Read a table of texts and labels (CSV, TSV or Parquet), or a folder with one folder of .txt files per label.

    If a folder contains `train`, only that is read, never `test`. Texts in `unsup` and rows without a label are
    returned as unlabelled. Spellings of one label have one name (`merge_spellings`). Empty texts are left out;
    `warnings` tell what else was not read.

    Raises CannotTrain: there are no texts, no labels, or a label with a single text; or a file cannot be read as text.
    """
    raw = _read_folder(path, rules) if path.is_dir() else _read_table(path, rules)
    kept = [i for i, text in enumerate(raw.texts) if text.strip()]
    if len(kept) < len(raw.texts):
        raw.warnings.append(f"{len(raw.texts) - len(kept):,} empty texts were left out.")
    kept = _drop_labelled_copies(_drop_copies_across_groups(kept, raw), raw)
    labelled = [i for i in kept if raw.labels[i] is not None]
    labels = [str(raw.labels[i]) for i in labelled]
    groups = [raw.groups[i] or normalised_hash(raw.texts[i]) for i in labelled]
    names = _label_names(labels, groups, path)
    _note_contradictions([raw.texts[i] for i in labelled], labels, raw.warnings)
    indices = {name: i for i, name in enumerate(names)}
    return TextData(
        texts=tuple(raw.texts[i] for i in labelled),
        labels=tuple(indices[label] for label in labels),
        names=_lengthen(names),
        groups=tuple(groups),
        unlabelled=tuple(raw.texts[i] for i in kept if raw.labels[i] is None),
        warnings=tuple(raw.warnings),
    )


def _lengthen(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names with `pos` and `neg` written out, unless there are labels of the longer names too."""
    longer = tuple(_LONG_NAMES.get(name.lower(), name) for name in names)
    return longer if len(set(longer)) == len(longer) else tuple(names)


def normalised_hash(text: str) -> str:
    """Return a hash that is equal for texts that differ only in case, whitespace and Unicode form."""
    normalised = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return hashlib.sha256(normalised.encode()).hexdigest()


def _drop_copies_across_groups(indices: Sequence[int], raw: _RawTexts) -> list[int]:
    """Drop copies of a text in another group: the first group keeps it."""
    first_group: dict[str, str] = {}
    kept = []
    for i in indices:
        group = raw.groups[i]
        if group is None or first_group.setdefault(normalised_hash(raw.texts[i]), group) == group:
            kept.append(i)
    if len(kept) < len(indices):
        raw.warnings.append(f"{len(indices) - len(kept):,} texts were left out: copies of texts in another group.")
    return kept


def _drop_labelled_copies(indices: Sequence[int], raw: _RawTexts) -> list[int]:
    """Drop unlabelled copies of labelled texts, since the labelled ones may be for validation."""
    labelled = {normalised_hash(raw.texts[i]) for i in indices if raw.labels[i] is not None}
    kept = [i for i in indices if raw.labels[i] is not None or normalised_hash(raw.texts[i]) not in labelled]
    if len(kept) < len(indices):
        raw.warnings.append(f"{len(indices) - len(kept):,} unlabelled texts were left out: copies of labelled texts.")
    return kept


def _label_names(labels: Sequence[str], groups: Sequence[str], path: Path) -> list[str]:
    """Return the distinct labels in order, numbers by size. Raises CannotTrain if they cannot be learnt."""
    counts = Counter(labels)
    if not counts:
        raise CannotTrain(f"{path} contains no text with a label.")
    if len(counts) == 1:
        raise CannotTrain(
            f"{path} has texts of one label only, '{next(iter(counts))}'; at least two labels are needed."
        )
    if len(counts) > _MAX_LABELS:
        raise CannotTrain(
            f"{path} has {len(counts):,} labels; at most {_MAX_LABELS} are accepted. Is it the label column?"
        )
    groups_of_label = Counter(label for label, _ in set(zip(labels, groups, strict=True)))
    if rare := [name for name in sorted(counts) if groups_of_label[name] < 2]:
        what = "one text" if counts[rare[0]] == 1 else "one group of texts"
        raise CannotTrain(
            f"The label '{rare[0]}' has {what}; at least two are needed, one to train on and one to validate "
            f"on.{suggest_label(rare[0], counts)}"
        )
    if all(re.fullmatch(r"-?\d{1,15}", name) for name in counts):
        return sorted(counts, key=int)
    return sorted(counts)


def _note_contradictions(texts: Sequence[str], labels: Sequence[str], warnings: list[str]) -> None:
    labels_of_text: dict[str, set[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        labels_of_text.setdefault(normalised_hash(text), set()).add(label)
    if count := sum(len(distinct) > 1 for distinct in labels_of_text.values()):
        warnings.append(f"{count:,} texts occur with more than one label.")


def _read_folder(folder: Path, rules: TextRules) -> _RawTexts:
    root, raw = _find_root(folder), _RawTexts()
    listings = {path: list_files(path, _TEXT_ENDINGS) for path in list_subfolders(root)}
    unread = [path.name for path in listings if path.name.lower() in _OTHER_SPLITS]
    unlabelled = [path for path in listings if path.name.lower() in _UNLABELLED]
    labelled = [path for path in listings if path.name not in unread and path not in unlabelled]
    left_out = Listing()
    for path in (*wrappers(folder, root), root):
        left_out += list_files(path, _TEXT_ENDINGS, recursive=False).as_beside()
    for path in (*labelled, *unlabelled):
        left_out += listings[path].without_files()
    texts = {path: listings[path].files for path in labelled if listings[path].files}
    if not texts:
        reasons = left_out.describe_left_out()
        raise CannotTrain(
            f"{root} has no subfolders with .txt files; put the texts of each label into a folder of their "
            f"own.{' ' + reasons if reasons else ''}"
        )
    merged = merge_spellings({path.name: len(files) for path, files in texts.items()}, truth_values=False)
    raw.warnings += [reasons for reasons in (left_out.describe_left_out(), *_describe_folders(root, texts)) if reasons]
    raw.warnings += merged.notes
    raw.warnings += _describe_unread(folder, root, unread, [path.name for path in labelled if path not in texts])
    for path, files in texts.items():
        groups = [_file_group(file, root, rules.files_per_group) for file in files]
        for text, group in zip(_read_files(files, rules.csv.encoding, raw.warnings), groups, strict=True):
            raw.add(text, merged.names[path.name], group)
    for path in unlabelled:
        for text in _read_files(listings[path].files, rules.csv.encoding, raw.warnings):
            raw.add(text, None, None)
    return raw


def _describe_folders(root: Path, texts: Mapping[Path, Sequence[Path]]) -> list[str]:
    return [describe_nested(root, texts, [file for files in texts.values() for file in files])]


def _describe_unread(folder: Path, root: Path, unread: Sequence[str], empty: Sequence[str]) -> list[str]:
    """Return sentences about folders that are not read: other splits, and those without a text."""
    sentences = []
    beside = [path.name for path in list_subfolders(root.parent)] if root != folder else []
    if others := [name for name in beside if name.lower() in _OTHER_SPLITS]:
        sentences.append(f"Only the folder '{root.name}' was read, not {join_quoted(others)}.")
    if unread:
        sentences.append(f"Not read as a label, but taken for another split: {join_quoted(unread)}.")
    if empty:
        sentences.append(f"Without a .txt file, and therefore no label: {join_quoted(empty)}.")
    return sentences


def _find_root(folder: Path) -> Path:
    """Return the folder that holds the labels' folders: `train`, also inside the only folder of an archive."""
    subfolders = list_subfolders(folder)
    parents = [folder, *subfolders] if len(subfolders) == 1 else [folder]
    candidates = (first_existing(parent, _TRAIN) for parent in parents)
    return next((path for path in candidates if path), None) or enter_wrapper(folder, _TEXT_ENDINGS)


def _file_group(file: Path, root: Path, files_per_group: int) -> str | None:
    numbered = _NUMBERED_FILE.fullmatch(file.stem)
    if not files_per_group or not numbered:
        return None
    return f"{file.parent.relative_to(root).as_posix()}/{int(numbered[1]) // files_per_group}"


def _read_files(files: Sequence[Path], encoding: str, warnings: list[str]) -> list[str]:
    """Return the texts of all files. Raises CannotTrain that counts those in another encoding."""
    texts, failures = [], []
    encodings: Counter[str] = Counter()
    for file in files:
        try:
            content = read_text_file(file, encoding)
        except NotText as error:
            failures.append(str(error))
            continue
        texts.append(content.text)
        encodings[content.encoding] += 1
    if len(failures) > 1:
        raise CannotTrain(f"{failures[0]} The same is true of {count_of(len(failures) - 1, 'more file')} there.")
    if failures:
        raise CannotTrain(failures[0])
    del encodings["UTF-8"]
    warnings += [
        f"{count_of(number, 'file')} of '{files[0].parent.name}' {was(number)} read as {name}."
        for name, number in encodings.items()
    ]
    return texts


def _read_table(path: Path, rules: TextRules) -> _RawTexts:
    raw = _RawTexts()
    frame = _read_frame(path, rules, raw.warnings)
    text_column = _find_text_column(frame, rules.text_column, path)
    label_column = _find_column(frame, rules.label_column, _LABEL_COLUMNS, "--label-column", path)
    if text_column == label_column:
        raise CannotTrain(f"The texts and the labels cannot both be in the column '{text_column}'.")
    groups: Sequence[str | None] = [None] * frame.height
    if rules.group_column:
        column = _find_column(frame, rules.group_column, (), "--group-column", path)
        groups = [_strip(value) for value in frame[column].cast(pl.String).to_list()]
    labels = _read_labels(frame[label_column], raw.warnings)
    merged = merge_spellings(Counter(label for label in labels if label is not None))
    raw.warnings += merged.notes
    for text, label, group in zip(frame[text_column].to_list(), labels, groups, strict=True):
        raw.add(text or "", label and merged.names[label], group)
    return raw


def _read_labels(column: pl.Series, warnings: list[str]) -> list[str | None]:
    """Return the labels as texts, None for missing ones; whole numbers are written without a fraction."""
    labels = [_strip(value) for value in column.cast(pl.String).to_list()]
    missing = Counter(label for label in labels if label in MISSING_TEXTS)
    if missing:
        names = list_quoted(sorted(filter(None, missing)))
        rows = missing.total()
        warnings.append(f"{count_of(rows, 'row')} with the label {names} {was(rows)} taken to have none.")
        labels = [None if label in MISSING_TEXTS else label for label in labels]
    if all(label is None or _WHOLE_NUMBER.fullmatch(label) for label in labels):
        return [label and str(int(float(label))) if label and "." in label else label for label in labels]
    return labels


def _strip(value: str | None) -> str | None:
    return (value or "").strip() or None


def _read_frame(path: Path, rules: TextRules, warnings: list[str]) -> pl.DataFrame:
    if not path.exists():
        raise CannotTrain(f"There is no file or folder {path}.")
    if not path.name.lower().removesuffix(".gz").endswith(_TABLE_SUFFIXES):
        raise CannotTrain(
            f"{path} is neither a table ({', '.join(_TABLE_SUFFIXES)}) nor a folder. Save the table as CSV, with the "
            "names of the columns in its first line."
        )
    table = read_cells(path, rules.csv)
    if not table.frame.height:
        raise CannotTrain(f"{path} has no rows.")
    warnings += table.notes
    return table.frame


def _find_text_column(frame: pl.DataFrame, name: str, path: Path) -> str:
    column = _find_column(frame, name, _TEXT_COLUMNS, "--text-column", path)
    if frame[column].dtype != pl.String:
        raise CannotTrain(f"The column '{column}' of {path} contains no texts; specify another with --text-column.")
    return column


def _find_column(frame: pl.DataFrame, name: str, common_names: Sequence[str], flag: str, path: Path) -> str:
    """Return the column with this name or, if it is empty, with a common name. Raises CannotTrain."""
    column = find_column(frame.columns, name, common_names, path)
    if column is None:
        listed = ", ".join(frame.columns)[:500]
        near = next((column for column in frame.columns if nearest_name(column, common_names)), "")
        raise CannotTrain(
            f"None of the columns of {path} ({listed}) is called {', '.join(common_names[:3])} or similar; specify it "
            f"with {flag}{f', such as {flag} {near!r}' if near else ''}."
        )
    return column
