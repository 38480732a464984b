"""Folders in a data set: which files are read, and how many are left out for which reason."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from tasks.system_errors import os_error_reason
from training.core.errors import CannotTrain
from training.core.sentences import count_of, list_items, was

_PROGRAM_FOLDERS = frozenset(
    (
        *("__macosx", "__pycache__", "_thumbs", "_thumbnails", "_vti_cnf", "lost+found", "system volume information"),
        *("$recycle.bin", "#recycle", "@recycle", "@eadir", "@tmp", "#snapshot", "@recently-snapshot"),
    )
)
"""Folders of thumbnails, indices and deleted files, made by systems and network storage (NAS); in lower case."""
_SYSTEM_FILES = frozenset(
    ("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", ".directory", ".localized", "icon\r")
)
_COMPANIONS = re.compile(r"(readme|licen[cs]e|copying|citation|changelog)\b.*|labels\.csv|codes\.txt", re.IGNORECASE)
"""Files that belong beside the data, and need no mention."""
_ENDING = re.compile(r"\.\w{1,12}")
_MAX_NAMED = 4


class Reason(Enum):
    """Why a file is left out; the value continues `3 files were left out: 3`."""

    ENDING = "ending in {}"
    NO_ENDING = "without an ending"
    BESIDE = "beside the folders that are read ({})"
    HIDDEN = "hidden ({})"
    HIDDEN_FOLDER = "in hidden folders ({})"
    PROGRAM_FOLDER = "in folders that other programs made ({})"
    SYSTEM = "made by the operating system ({})"
    LINK = "behind links that lead nowhere, or to a folder that is read already ({})"
    NAME = "whose name, or whose folder's name, is not in UTF-8"
    SPECIAL = "of a special kind, such as pipes ({})"


class LeftOut(NamedTuple):
    """A reason, and the ending, or the name of the file or folder, that it is about."""

    reason: Reason
    name: str = ""


@dataclass(frozen=True)
class Listing:
    """The files of a folder that are read, sorted, and how many others are left out."""

    files: tuple[Path, ...] = ()
    left_out: Mapping[LeftOut, int] = field(default_factory=dict)

    def __add__(self, other: "Listing") -> "Listing":
        return Listing(self.files + other.files, Counter(self.left_out) + Counter(other.left_out))

    def endings(self) -> dict[str, int]:
        """Return how many files are left out because of each ending, in lower case."""
        return {entry.name: count for entry, count in self.left_out.items() if entry.reason is Reason.ENDING}

    def as_beside(self) -> "Listing":
        """Return the listing with its files left out, because they lie beside the folders of the classes."""
        names = (file.name for file in self.files if not _COMPANIONS.fullmatch(file.name))
        return Listing((), {**self.left_out, **{LeftOut(Reason.BESIDE, name): 1 for name in names}})

    def without_files(self) -> "Listing":
        """Return the counts of what is left out alone."""
        return Listing((), self.left_out)

    def without_endings(self, endings: Collection[str]) -> "Listing":
        """Return the listing without the counts of these endings, for a caller that describes them in other words."""
        kept = {
            entry: count
            for entry, count in self.left_out.items()
            if entry.reason is not Reason.ENDING or entry.name not in endings
        }
        return Listing(self.files, kept)

    def describe_left_out(self) -> str:
        """Return a sentence that counts the files that are left out, by reason; empty if there are none."""
        names: dict[Reason, Counter[str]] = defaultdict(Counter)
        for (reason, name), number in self.left_out.items():
            names[reason][name] += number
        parts = [part for reason in Reason if reason in names for part in _count_reason(reason, names[reason])]
        total = sum(self.left_out.values())
        if not total:
            return ""
        if len(parts) == 1:
            what = parts[0].partition(" ")[2]
            return f"{count_of(total, 'file')} {what} {was(total)} left out."
        return f"{total:,} files were left out: {', '.join(parts)}."


def _count_reason(reason: Reason, names: Counter[str]) -> list[str]:
    """Return parts of a sentence that count the files of one reason."""
    if reason is not Reason.ENDING:
        return [f"{names.total():,} {reason.value.format(_list_names(names))}"]
    parts = [f"{count:,} ending in {ending}" for ending, count in names.most_common(_MAX_NAMED)]
    rest = names.total() - sum(count for _, count in names.most_common(_MAX_NAMED))
    return [*parts, f"{rest:,} with other endings"] if rest else parts


def _list_names(names: Mapping[str, int]) -> str:
    return list_items(sorted(names), _MAX_NAMED)


def list_files(
    folder: Path, endings: Collection[str], *, recursive: bool = True, known: Collection[str] = ()
) -> Listing:
    """List the files with one of these endings (in lower case), at any depth unless not `recursive`.

    Unless `recursive`, other folders are passed over and not counted, except those that hold no data.

    Hidden files and folders, and those that systems and other programs leave behind, are left out. Links to folders are
    followed, unless they lead to a folder that has been listed or to one that contains this folder. `known` names files
    that are read in another way, and do not count as left out.

    Raises CannotTrain if a folder cannot be read.
    """
    files: list[Path] = []
    left_out: Counter[LeftOut] = Counter()
    resolved = folder.resolve()
    for path, problem in _walk(folder, {resolved, *resolved.parents}, recursive=recursive):
        reason = problem or _reason_of_name(path.name, endings)
        if reason is None:
            files.append(path)
        elif problem or not (path.name in known or _COMPANIONS.fullmatch(path.name)):
            left_out[reason] += 1
    return Listing(tuple(sorted(files)), left_out)


def _walk(folder: Path, seen: set[Path], *, recursive: bool) -> Iterator[tuple[Path, LeftOut | None]]:
    """Yield the files below a folder, each with the reason to leave it out, if that is not in its name.

    `seen` holds the folders that no link is followed to; those that are walked are added.
    """
    for entry in _scan(folder):
        path, name = folder / entry.name, entry.name
        if not _is_folder(entry):
            yield path, _reason_of_kind(entry) if _is_utf8(name) else LeftOut(Reason.NAME)
        elif reason := _reason_of_folder(name):
            yield from ((path / file, reason) for _, _, files in os.walk(path) for file in files)
        elif recursive:
            resolved = path.resolve()
            if entry.is_symlink() and resolved in seen:
                yield path, LeftOut(Reason.LINK, name)
                continue
            seen.add(resolved)
            yield from _walk(path, seen, recursive=True)


def _scan(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise CannotTrain(f"The folder {folder} cannot be read: {os_error_reason(error)}.") from None


def _is_utf8(name: str) -> bool:
    """Whether a name can be printed: the system hands over other bytes, as from old archives, as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _reason_of_folder(name: str) -> LeftOut | None:
    if not _is_utf8(name):
        return LeftOut(Reason.NAME)
    if not is_left_behind(name):
        return None
    return LeftOut(Reason.HIDDEN_FOLDER if name.startswith(".") else Reason.PROGRAM_FOLDER, name)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A loop of links, or a link into a folder that cannot be read.
        return False


def _reason_of_kind(entry: "os.DirEntry[str]") -> LeftOut | None:
    try:
        is_file = entry.is_file()
    except OSError:
        is_file = False
    if is_file:
        return None
    return LeftOut(Reason.LINK if entry.is_symlink() else Reason.SPECIAL, entry.name)


def _reason_of_name(name: str, endings: Collection[str]) -> LeftOut | None:
    if name.lower() in _SYSTEM_FILES or name.startswith("._"):  # `._x` are the attributes of `x` on a Mac.
        return LeftOut(Reason.SYSTEM, "._…" if name.startswith("._") else name.strip())
    if name.startswith("."):
        return LeftOut(Reason.HIDDEN, name)
    ending = Path(name).suffix.lower()
    if ending in endings:
        return None
    return LeftOut(Reason.ENDING, ending) if _ENDING.fullmatch(ending) else LeftOut(Reason.NO_ENDING)


def is_left_behind(name: str) -> bool:
    """Whether a folder of this name is hidden, or made by a system or another program, and holds no data."""
    return name.startswith(".") or name.lower() in _PROGRAM_FOLDERS


def list_subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without those that are hidden or left behind by other programs.

    Raises CannotTrain if the folder cannot be read, or the name of one in it is not in UTF-8.
    """
    names = [entry.name for entry in _scan(folder) if _is_folder(entry) and not is_left_behind(entry.name)]
    for name in names:
        if not _is_utf8(name):
            shown = name.encode("utf-8", "replace").decode()
            raise CannotTrain(f"The name of the folder {shown!r} in {folder} is not in UTF-8. Rename it.")
    return [folder / name for name in names]


def first_existing(root: Path, names: Sequence[str]) -> Path | None:
    """Return the first of the named folders that exists in `root`, in any case; None if there is none."""
    folders = {path.name: path for path in list_subfolders(root)} if root.is_dir() else {}
    lower = {name.lower(): path for name, path in folders.items()}
    return next((folders.get(name) or lower[name] for name in names if name in lower), None)


def enter_wrapper(folder: Path, endings: Collection[str]) -> Path:
    """Return the only subfolder, if it holds several folders and neither has files of its own, as in an archive."""
    subfolders = list_subfolders(folder)
    if len(subfolders) != 1 or len(list_subfolders(subfolders[0])) < 2:
        return folder
    has_files = any(list_files(path, endings, recursive=False).files for path in (folder, subfolders[0]))
    return folder if has_files else subfolders[0]


def wrappers(folder: Path, root: Path) -> list[Path]:
    """Return the folders that were entered on the way from `folder` down to `root`, without `root`."""
    return [path for path in reversed(root.parents) if path == folder or folder in path.parents]


def describe_nested(root: Path, class_folders: Iterable[Path], files: Iterable[Path]) -> str:
    """Return a sentence that names folders within those of classes whose files count for the class; empty if none."""
    nested: dict[str, set[str]] = defaultdict(set)
    classes = set(class_folders)
    for file in files:
        parts = file.relative_to(root).parts
        if len(parts) > 2 and root / parts[0] in classes:
            nested[parts[0]].add(parts[1])
    if not nested:
        return ""
    examples = [f"{name}/{inner}" for name, inners in sorted(nested.items()) for inner in sorted(inners)]
    return f"Files in folders within a class count for the class: {list_items(examples, _MAX_NAMED)}."
