"""Reads labelled texts from a table or from a folder per label, and groups texts that belong together."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tasks._characters import clean_text
from training.core.errors import CannotTrain
from training.data.folders import list_subfolders

_TEXT_COLUMNS = ("text", "review", "sentence", "content", "comment", "body", "message", "tweet", "document")
_LABEL_COLUMNS = ("label", "sentiment", "class", "category", "target", "polarity", "rating")
_TRAIN, _OTHER_SPLITS = ("train", "training"), ("test", "valid", "validation", "val", "dev")
_UNLABELLED = ("unsup", "unlabelled", "unlabeled")
_LONG_NAMES = {"pos": "positive", "neg": "negative"}
_TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
_MAX_LABELS = 200
_NUMBERED_FILE = re.compile(r"(\d{1,15})(_\d+)?")


@dataclass(frozen=True)
class TextRules:
    """How to find texts.

    Attributes:
        text_column, label_column: columns of a table; empty: guessed from common names.
        group_column: column of a table; texts of one group stay on one side of a split; empty: equal texts are a group.
        files_per_group: for numbered files: this many consecutive numbers are a group; 0: equal texts are a group.
    """

    text_column: str = ""
    label_column: str = ""
    group_column: str = ""
    files_per_group: int = 0


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
    returned as unlabelled. Empty texts are left out.

    Raises CannotTrain: there are no texts, no labels, or a label with a single text; or a file is not UTF-8.
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
        names=tuple(_LONG_NAMES.get(name, name) for name in names),
        groups=tuple(groups),
        unlabelled=tuple(raw.texts[i] for i in kept if raw.labels[i] is None),
        warnings=tuple(raw.warnings),
    )


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
            f"The label '{rare[0]}' has {what}; at least two are needed, one to train on and one to validate on."
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
    folders = [path for path in list_subfolders(root) if any(path.glob("*.txt"))]
    labelled = [path for path in folders if path.name not in (*_UNLABELLED, *_OTHER_SPLITS)]
    if not labelled:
        raise CannotTrain(
            f"{root} has no subfolders with .txt files; put the texts of each label into a folder of their own."
        )
    if root != folder and (
        others := [path.name for path in list_subfolders(root.parent) if path.name in _OTHER_SPLITS]
    ):
        raw.warnings.append(f"Only the folder '{root.name}' was read, not '{others[0]}'.")
    for path in folders:
        if path in labelled:
            for file in sorted(path.glob("*.txt")):
                raw.add(_read_file(file), path.name, _file_group(file, rules.files_per_group))
        elif path.name in _UNLABELLED:
            for file in sorted(path.glob("*.txt")):
                raw.add(_read_file(file), None, None)
    return raw


def _find_root(folder: Path) -> Path:
    """Return the folder that holds the labels' folders: `train`, also inside the only folder of an archive."""
    subfolders = list_subfolders(folder)
    parents = [folder, *subfolders] if len(subfolders) == 1 else [folder]
    candidates = (parent / name for parent in parents for name in _TRAIN if (parent / name).is_dir())
    return next(candidates, folder)


def _file_group(file: Path, files_per_group: int) -> str | None:
    numbered = _NUMBERED_FILE.fullmatch(file.stem)
    if not files_per_group or not numbered:
        return None
    return f"{file.parent.name}/{int(numbered[1]) // files_per_group}"


def _read_file(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CannotTrain(f"{file} is not UTF-8 (see byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise CannotTrain(f"{file} cannot be read: {error.strerror}.") from None


def _read_table(path: Path, rules: TextRules) -> _RawTexts:
    frame = _read_frame(path)
    text_column = _find_text_column(frame, rules.text_column, path)
    label_column = _find_column(frame, rules.label_column, _LABEL_COLUMNS, "--label-column", path)
    if text_column == label_column:
        raise CannotTrain(f"The texts and the labels cannot both be in the column '{text_column}'.")
    groups: Sequence[str | None] = [None] * frame.height
    if rules.group_column:
        column = _find_column(frame, rules.group_column, (), "--group-column", path)
        groups = [_strip(value) for value in frame[column].cast(pl.String).to_list()]
    raw = _RawTexts()
    for text, label, group in zip(frame[text_column].to_list(), _read_labels(frame[label_column]), groups, strict=True):
        raw.add(text or "", label, group)
    return raw


def _read_labels(column: pl.Series) -> Iterator[str | None]:
    if column.dtype.is_float() and bool((column.drop_nulls().drop_nans() % 1 == 0).all()):
        column = column.fill_nan(None).cast(pl.Int64)
    return (_strip(value) for value in column.cast(pl.String).to_list())


def _strip(value: str | None) -> str | None:
    return (value or "").strip() or None


def _read_frame(path: Path) -> pl.DataFrame:
    if path.suffix.lower() not in _TABLE_SUFFIXES:
        raise CannotTrain(f"{path} is neither a table ({', '.join(_TABLE_SUFFIXES)}) nor a folder.")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            frame = pl.read_parquet(path)
        else:
            frame = pl.read_csv(path.read_bytes(), separator=_guess_separator(path), infer_schema=False)
    except pl.exceptions.NoDataError:
        raise CannotTrain(f"{path} is empty.") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0][:200].rstrip(".")
        if "utf-8" in reason.lower() or "utf8" in reason.lower():
            raise CannotTrain(f"{path} is not UTF-8. Save it as UTF-8.") from None
        raise CannotTrain(f"{path} cannot be read as a table: {reason}.") from None
    if not frame.height:
        raise CannotTrain(f"{path} has no rows.")
    return frame


def _guess_separator(path: Path) -> str:
    with path.open("rb") as file:
        header = file.readline(100_000)
    return max(",\t;", key=lambda separator: header.count(separator.encode()))


def _find_text_column(frame: pl.DataFrame, name: str, path: Path) -> str:
    column = _find_column(frame, name, _TEXT_COLUMNS, "--text-column", path)
    if frame[column].dtype != pl.String:
        raise CannotTrain(f"The column '{column}' of {path} contains no texts; specify another with --text-column.")
    return column


def _find_column(frame: pl.DataFrame, name: str, common_names: Sequence[str], flag: str, path: Path) -> str:
    """Return the column with this name or, if it is empty, with a common name. Raises CannotTrain."""
    if name and name not in frame.columns:
        raise CannotTrain(f"{path} has no column '{name}'; its columns are {', '.join(frame.columns)[:500]}.")
    columns = {column.strip().lower(): column for column in reversed(frame.columns)}
    column = name or next((columns[common] for common in common_names if common in columns), "")
    if not column:
        raise CannotTrain(
            f"None of the columns of {path} ({', '.join(frame.columns)[:500]}) is called {', '.join(common_names[:3])} "
            f"or similar; specify it with {flag}."
        )
    return column
