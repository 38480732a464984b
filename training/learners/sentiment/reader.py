"""Texts with labels, as people keep them: a table, or a folder for each label; and which of them belong together."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tasks.sentiment import strip_control_characters
from training.core.errors import CannotTrain

_TEXT_NAMES = ("text", "review", "sentence", "content", "comment", "body", "message", "tweet", "document")
_LABEL_NAMES = ("label", "sentiment", "class", "category", "target", "polarity", "rating")
_TRAIN, _ASIDE = ("train", "training"), ("test", "valid", "validation", "val", "dev")
_UNLABELLED = ("unsup", "unlabelled", "unlabeled")
_SPELT_OUT = {"pos": "positive", "neg": "negative"}
_TABLES = (".csv", ".tsv", ".parquet", ".pq")
_MAX_LABELS = 200
_NUMBERED = re.compile(r"(\d{1,15})(_\d+)?")


@dataclass(frozen=True)
class TextRules:
    """How texts are found.

    Attributes:
        text_column, label_column: of a table; empty: guessed from their names.
        group_column: of a table: texts of one group stay on one side of a split; empty: equal texts are a group.
        neighbours: of files that are numbered: so many consecutive numbers are a group; 0: equal texts are.
    """

    text_column: str = ""
    label_column: str = ""
    group_column: str = ""
    neighbours: int = 0


@dataclass(frozen=True)
class Texts:
    """What was read.

    Attributes:
        texts: without control characters, as the service reads them too.
        labels: of each text, an index of `names`.
        names: of the labels.
        groups: of each text; what is equal stays on one side of a split.
        unlabelled: texts that only a language model can read.
        notices: what was found on reading.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass
class _Found:
    """Texts as they come; a label of None is none, and a group of none is found from the text."""

    texts: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def add(self, text: str, label: str | None, group: str | None) -> None:
        self.texts.append(strip_control_characters(text)[0])
        self.labels.append(label)
        self.groups.append(group)


def read_texts(path: Path, rules: TextRules) -> Texts:
    """Reads a table of texts and labels (CSV, TSV or Parquet), or a folder with a folder of .txt files for each label.

    Of a folder with `train` in it, only that is read, and `test` never; texts in `unsup`, and rows without a label,
    are returned apart. Empty texts are left out.

    Raises CannotTrain: there are no texts, no labels, or a label with a single text; a file is not UTF-8.
    """
    found = _read_folder(path, rules) if path.is_dir() else _read_table(path, rules)
    places = [i for i, text in enumerate(found.texts) if text.strip()]
    if len(places) < len(found.texts):
        found.notices.append(f"{len(found.texts) - len(places):,} empty texts were left out.")
    places = _without_known(_without_copies(places, found), found)
    labelled = [i for i in places if found.labels[i] is not None]
    values = [str(found.labels[i]) for i in labelled]
    groups = [found.groups[i] or perceptual_hash(found.texts[i]) for i in labelled]
    names = _names(values, groups, path)
    _note_contradictions([found.texts[i] for i in labelled], values, found.notices)
    index = {name: i for i, name in enumerate(names)}
    return Texts(
        texts=tuple(found.texts[i] for i in labelled),
        labels=tuple(index[value] for value in values),
        names=tuple(_SPELT_OUT.get(name, name) for name in names),
        groups=tuple(groups),
        unlabelled=tuple(found.texts[i] for i in places if found.labels[i] is None),
        notices=tuple(found.notices),
    )


def perceptual_hash(text: str) -> str:
    """A hash that texts share which differ in no more than capitals, blanks and how their letters are encoded."""
    plain = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return hashlib.sha256(plain.encode()).hexdigest()


def _without_copies(places: Sequence[int], found: _Found) -> list[int]:
    """Where groups are told, a text may stand in two of them: then the first keeps it."""
    first: dict[str, str] = {}
    kept = []
    for i in places:
        group = found.groups[i]
        if group is None or first.setdefault(perceptual_hash(found.texts[i]), group) == group:
            kept.append(i)
    if len(kept) < len(places):
        found.notices.append(f"{len(places) - len(kept):,} texts were left out: copies of texts in another group.")
    return kept


def _without_known(places: Sequence[int], found: _Found) -> list[int]:
    """Without unlabelled texts that stand there with a label too: one of those may be for validation."""
    known = {perceptual_hash(found.texts[i]) for i in places if found.labels[i] is not None}
    kept = [i for i in places if found.labels[i] is not None or perceptual_hash(found.texts[i]) not in known]
    if len(kept) < len(places):
        found.notices.append(
            f"{len(places) - len(kept):,} unlabelled texts were left out: they have a label elsewhere."
        )
    return kept


def _names(values: Sequence[str], groups: Sequence[str], path: Path) -> list[str]:
    """The labels in order, numbers by their size. Raises CannotTrain where there is nothing to tell apart."""
    counts = Counter(values)
    if not counts:
        raise CannotTrain(f"{path} holds no text with a label.")
    if len(counts) == 1:
        raise CannotTrain(f"{path} has texts of one label only, '{next(iter(counts))}': it needs two or more.")
    if len(counts) > _MAX_LABELS:
        raise CannotTrain(
            f"{path} has {len(counts):,} labels; at most {_MAX_LABELS} can be told apart. Is that the label column?"
        )
    different = Counter(value for value, _ in set(zip(values, groups, strict=True)))
    if rare := [name for name in sorted(counts) if different[name] < 2]:
        what = "one text" if counts[rare[0]] == 1 else "one group of texts"
        raise CannotTrain(f"The label '{rare[0]}' has {what}: it needs two or more, to train and to validate.")
    if all(re.fullmatch(r"-?\d{1,15}", name) for name in counts):
        return sorted(counts, key=int)
    return sorted(counts)


def _note_contradictions(texts: Sequence[str], values: Sequence[str], notices: list[str]) -> None:
    labels: dict[str, set[str]] = {}
    for text, value in zip(texts, values, strict=True):
        labels.setdefault(perceptual_hash(text), set()).add(value)
    if several := sum(len(found) > 1 for found in labels.values()):
        notices.append(f"{several:,} texts stand there with more than one label.")


def _read_folder(folder: Path, rules: TextRules) -> _Found:
    root, found = _root(folder), _Found()
    folders = [path for path in _folders(root) if any(path.glob("*.txt"))]
    labelled = [path for path in folders if path.name not in (*_UNLABELLED, *_ASIDE)]
    if not labelled:
        raise CannotTrain(f"{root} has no folders with .txt files in them: it needs a folder for each label.")
    if root != folder and (aside := [path.name for path in _folders(root.parent) if path.name in _ASIDE]):
        found.notices.append(f"Only the folder '{root.name}' was read, not '{aside[0]}'.")
    for path in folders:
        if path in labelled:
            for file in sorted(path.glob("*.txt")):
                found.add(_content(file), path.name, _group(file, rules.neighbours))
        elif path.name in _UNLABELLED:
            for file in sorted(path.glob("*.txt")):
                found.add(_content(file), None, None)
    return found


def _root(folder: Path) -> Path:
    """The folder that holds the labels' folders: `train`, or the only folder of an unpacked archive."""
    inner = _folders(folder)
    outers = [folder, *inner] if len(inner) == 1 else [folder]
    found = (outer / name for outer in outers for name in _TRAIN if (outer / name).is_dir())
    return next(found, folder)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _group(file: Path, neighbours: int) -> str | None:
    numbered = _NUMBERED.fullmatch(file.stem)
    if not neighbours or not numbered:
        return None
    return f"{file.parent.name}/{int(numbered[1]) // neighbours}"


def _content(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CannotTrain(f"{file} is not UTF-8 (see byte {error.start}): convert it first.") from None
    except OSError as error:
        raise CannotTrain(f"{file} cannot be read: {error.strerror}.") from None


def _read_table(path: Path, rules: TextRules) -> _Found:
    frame = _frame(path)
    texts = _text_column(frame, rules.text_column, path)
    labels = _column(frame, rules.label_column, _LABEL_NAMES, "--label-column", path)
    if texts == labels:
        raise CannotTrain(f"The texts and the labels cannot both be in the column '{texts}'.")
    groups: Sequence[str | None] = [None] * frame.height
    if rules.group_column:
        column = _column(frame, rules.group_column, (), "--group-column", path)
        groups = [_stripped(value) for value in frame[column].cast(pl.String).to_list()]
    found = _Found()
    for text, label, group in zip(frame[texts].to_list(), _labels(frame[labels]), groups, strict=True):
        found.add(text or "", label, group)
    return found


def _labels(column: pl.Series) -> Iterator[str | None]:
    if column.dtype.is_float() and bool((column.drop_nulls().drop_nans() % 1 == 0).all()):
        column = column.fill_nan(None).cast(pl.Int64)
    return (_stripped(value) for value in column.cast(pl.String).to_list())


def _stripped(value: str | None) -> str | None:
    return (value or "").strip() or None


def _frame(path: Path) -> pl.DataFrame:
    if path.suffix.lower() not in _TABLES:
        raise CannotTrain(f"{path} is neither a table ({', '.join(_TABLES)}) nor a folder.")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            frame = pl.read_parquet(path)
        else:
            frame = pl.read_csv(path.read_bytes(), separator=_separator(path), infer_schema=False)
    except pl.exceptions.NoDataError:
        raise CannotTrain(f"{path} is empty.") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0][:200].rstrip(".")
        if "utf-8" in reason.lower() or "utf8" in reason.lower():
            raise CannotTrain(f"{path} is not UTF-8: convert it first.") from None
        raise CannotTrain(f"{path} cannot be read as a table: {reason}.") from None
    if not frame.height:
        raise CannotTrain(f"{path} holds no rows.")
    return frame


def _separator(path: Path) -> str:
    with path.open("rb") as file:
        header = file.readline(100_000)
    return max(",\t;", key=lambda separator: header.count(separator.encode()))


def _text_column(frame: pl.DataFrame, wanted: str, path: Path) -> str:
    name = _column(frame, wanted, _TEXT_NAMES, "--text-column", path)
    if frame[name].dtype != pl.String:
        raise CannotTrain(f"The column '{name}' of {path} holds no texts: choose another with --text-column.")
    return name


def _column(frame: pl.DataFrame, wanted: str, usual: Sequence[str], flag: str, path: Path) -> str:
    """The column of that name, or the first of a usual name. Raises CannotTrain."""
    if wanted and wanted not in frame.columns:
        raise CannotTrain(f"{path} has no column '{wanted}'; its columns are {', '.join(frame.columns)[:500]}.")
    spelt = {name.strip().lower(): name for name in reversed(frame.columns)}
    found = wanted or next((spelt[name] for name in usual if name in spelt), "")
    if not found:
        raise CannotTrain(
            f"None of the columns of {path} ({', '.join(frame.columns)[:500]}) is called {', '.join(usual[:3])} or the "
            f"like: say which it is with {flag}."
        )
    return found
