"""The classes of a set of masks: which value of a mask means which label.

Values are the indices 0, 1, 2, … of the labels, unless the user gives others. Masks in black and white, also with the
noise of JPEG compression or with soft edges, have two classes. Other values are refused if what they mean is unclear;
what was inferred is told in a sentence.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks._masks import Colour
from training.core.errors import CannotTrain
from training.data.text_files import NotText, read_text_file
from training.learners.segmentation.masks import MaskContents, MaskReader, choose_reader, decode_mask, percent

IGNORED = 255
"""Target value of unlabelled pixels."""
CODES = "codes.txt"
_VOID_NAMES = {"void", "unlabelled", "unlabeled", "unlabel", "unknown", "ignore", "ignored"}
_BLACK_AND_WHITE = ("background", "foreground")
_MAX_DARK, _MIN_LIGHT = 32, 223
"""Values that count as nearly black, and nearly white."""
_MAX_BETWEEN = 0.2
"""Largest fraction of pixels between black and white in masks of two classes: soft edges of small objects."""
_MAX_EXACT_VALUES = 8
"""Masks without noise or soft edges that have at most so many values contain only values that are meant."""
_MIN_SMEARED = 3
"""From so many values just below 255 on, they are noise rather than special indices such as 254."""
_PEAK_WIDTH = 17
_MIN_PEAK = 0.002
"""Fraction of pixels from which a peak between black and white is a third grey, and not an edge."""
_MIN_GREY = 64
"""From this value on, values with gaps beside 255 look like greys rather than indices."""
_MAX_UNNAMED = 64
"""Values up to this number may be unnamed and have gaps."""
_MIN_STEP = 64
"""Smallest difference between two given values for which values in between count as the nearer one."""
_MAX_LISTED = 8


@dataclass(frozen=True)
class MaskRules:
    """What the user says about the masks.

    Attributes:
        labels: names of the labels, if there is no codes.txt.
        values: the mask value of each label, if they are not 0, 1, 2, ….
        void: mask value of unlabelled pixels; -1 = the value that codes.txt or `labels` name void, and 255.
        colours: colours of the labels, as rrggbb; masks in colour are read by them.
    """

    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    void: int = -1
    colours: tuple[str, ...] = ()


@dataclass(frozen=True)
class Classes:
    """The classes of a set of masks.

    Attributes:
        labels: names of the classes, without void.
        index_of_value: for each mask value 0…255, the index of its label, or IGNORED.
        colours: one per label; empty if the masks have no palette.
        reader: how to read the values of a mask.
    """

    labels: tuple[str, ...]
    index_of_value: NDArray[np.uint8]
    colours: tuple[Colour, ...] = ()
    reader: MaskReader = field(default_factory=MaskReader)

    def read_target(self, path: Path) -> NDArray[np.uint8]:
        """Return the target of a mask, uint8 (height, width): indices of labels, or IGNORED. Raises CannotTrain."""
        target: NDArray[np.uint8] = self.index_of_value[self.reader.read(path)]
        return target

    def count_pixels(self, contents: Iterable[MaskContents]) -> NDArray[np.int64]:
        """Return the number of pixels of each label in masks."""
        counts = np.zeros(len(self.labels), np.int64)
        for mask in contents:
            for value, count in self.reader.count_values(mask).items():
                if self.index_of_value[value] != IGNORED:
                    counts[self.index_of_value[value]] += count
        return counts


@dataclass(frozen=True)
class _MaskValues:
    """The values in the masks of a folder.

    Attributes:
        files: the masks, with the number of pixels of each value in it.
        lossy: the masks whose compression changes values.
        totals: number of pixels of each value in all masks.
    """

    root: Path
    files: tuple[tuple[Path, Mapping[int, int]], ...]
    lossy: tuple[Path, ...]
    totals: Counter[int] = field(init=False)

    def __post_init__(self) -> None:
        totals: Counter[int] = Counter()
        for _, counts in self.files:
            totals.update(counts)
        object.__setattr__(self, "totals", totals)

    def example(self, value: int) -> Path:
        return next(path for path, counts in self.files if value in counts)

    def share(self, values: Iterable[int]) -> str:
        return percent(sum(self.totals[value] for value in values), self.totals.total())

    def describe(self) -> str:
        """List the values with their shares of the pixels, such as "0 (71.2 %) and 255 (28.8 %)"."""
        values = sorted(self.totals)
        if len(values) > _MAX_LISTED:
            return f"{len(values)} different values from {values[0]} to {values[-1]}"
        return f"the values {_join([f'{value} ({self.share([value])})' for value in values])}"


def find_classes(
    root: Path, masks: Sequence[tuple[Path, MaskContents]], rules: MaskRules, warnings: list[str]
) -> Classes:
    """Return the classes, checked against the values that occur in the masks; append to `warnings` what was inferred.

    Raises CannotTrain if a value has no label, fewer than two classes occur, or what the values mean is unclear.
    """
    colours = parse_colours(rules.colours)
    reader = choose_reader(root, masks, colours, warnings)
    lossy = tuple(path for path, contents in masks if contents.is_lossy)
    values = _MaskValues(root, tuple((path, reader.count_values(contents)) for path, contents in masks), lossy)
    if any(contents.is_reduced for _, contents in masks):
        warnings.append("Masks of 16 bits were reduced to 8 bits: 65535 became 255.")
    names = _read_names(root, rules.labels, warnings)
    if reader.colours:
        names = _name_colours(names, rules.colours)
        classes = _index_classes(values, names, rules.void, warnings)
        kept = [value for value in range(len(names)) if classes.index_of_value[value] != IGNORED]
        return Classes(classes.labels, classes.index_of_value, tuple(reader.colours[value] for value in kept), reader)
    if rules.values:
        classes = _classes_of_given_values(values, names, rules, warnings)
    else:
        classes = _black_and_white_classes(values, names, rules, warnings) or _index_classes(
            values, names, rules.void, warnings
        )
    colours = () if reader.expands_palette else _palette_colours(masks, classes)
    return Classes(classes.labels, classes.index_of_value, colours, reader)


def parse_colours(colours: Sequence[str]) -> tuple[Colour, ...]:
    """Return colours written as rrggbb. Raises CannotTrain."""
    if not all(re.fullmatch("[0-9a-fA-F]{6}", colour) for colour in colours):
        raise CannotTrain("--colours must be six hexadecimal digits each, such as 804080.")
    if duplicates := [colour for colour, count in Counter(map(str.lower, colours)).items() if count > 1]:
        raise CannotTrain(f"--colours has the colour {duplicates[0]} twice.")
    return tuple((*bytes.fromhex(colour),) for colour in colours)


def _read_names(root: Path, given: Sequence[str], warnings: list[str]) -> list[str]:
    """Return the names of the labels, including void; empty if there are none."""
    codes = root / CODES
    names = list(given)
    if codes.is_file():
        names = _read_codes(codes, warnings)
        if given and list(given) != names:
            warnings.append(f"The labels are those of {codes}; --labels, which names others, was not used.")
    if len(names) > 255:
        raise CannotTrain(f"{root} has {len(names)} labels; an 8-bit mask can hold at most 255 labels besides void.")
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise CannotTrain(f"The label '{duplicates[0]}' occurs twice in {codes if codes.is_file() else '--labels'}.")
    return names


def _read_codes(codes: Path, warnings: list[str]) -> list[str]:
    try:
        file = read_text_file(codes)
    except NotText:  # For so short a file there is no option.
        raise CannotTrain(f"{codes} is not UTF-8. Save it as UTF-8.") from None
    warnings += file.describe(codes)
    return [line.strip() for line in file.text.splitlines() if line.strip()]


def _name_colours(names: Sequence[str], colours: Sequence[str]) -> list[str]:
    """Return the name of each colour of masks in colour."""
    if names and len(names) != len(colours):
        raise CannotTrain(
            f"--colours has {len(colours)} colours for {len(names)} labels ({_join(names)}). The masks are in colour: "
            "give the colour of each label in them, in the same order, also of void."
        )
    return list(names) or [f"colour {colour.lower()}" for colour in colours]


def _is_void(name: str) -> bool:
    return name.lower() in _VOID_NAMES


def _classes(values: _MaskValues, value_of_name: Mapping[str, int], void: set[int]) -> Classes:
    """Return the classes with these values. Raises CannotTrain if fewer than two of them occur."""
    kept = {name: value for name, value in value_of_name.items() if value not in void}
    if len(set(kept.values()) & set(values.totals)) < 2:
        raise CannotTrain(
            f"The masks in {values.root} contain {values.describe()}: these are fewer than two classes besides void "
            f"({_join(sorted(void))}). Mask values must be the indices 0, 1, 2, … of the labels, or those that "
            "--values gives; --void sets the value of unlabelled pixels."
        )
    index_of_value = np.full(256, IGNORED, np.uint8)
    for index, value in enumerate(kept.values()):
        index_of_value[value] = index
    return Classes(tuple(kept), index_of_value)


# Indices


def _index_classes(values: _MaskValues, names: Sequence[str], void: int, warnings: list[str]) -> Classes:
    """Return the classes of masks whose values are the indices of the labels."""
    if values.lossy:
        raise CannotTrain(
            f"{values.lossy[0]} is compressed with losses, which change its values; this is possible only for masks in "
            f"black and white with two labels and no void, but the masks contain {values.describe()}. Save them as "
            "PNG, with the index of each pixel's label as its value."
        )
    if not names:
        return _unnamed_classes(values, void, warnings)
    void_values = {255} | ({void} if void >= 0 else {i for i, name in enumerate(names) if _is_void(name)})
    for value in sorted(values.totals):
        if value >= len(names) and value not in void_values:
            raise CannotTrain(
                f"{values.example(value)} contains the value {value}, but there are only {len(names)} labels, 0 to "
                f"{len(names) - 1} ({_join(names)}). If {value} means unlabelled, use --void {value}; if the labels "
                f"have other values than 0, 1, 2, …, give them with --values."
            )
    classes = _classes(values, {name: value for value, name in enumerate(names)}, void_values)
    _tell_void(values, {value for value in void_values if value >= len(names)}, warnings)
    return classes


def _unnamed_classes(values: _MaskValues, void: int, warnings: list[str]) -> Classes:
    """Return a class for each value that occurs, named after the value. Raises CannotTrain if they look like greys."""
    void_values = {255} | ({void} if void >= 0 else set())
    kept = sorted(set(values.totals) - void_values)
    has_gaps = kept != list(range(len(kept)))
    if has_gaps and 255 in values.totals and void < 0 and kept[-1] >= _MIN_GREY:
        _refuse_greys(values, kept)
    if len(kept) > _MAX_UNNAMED and (has_gaps or kept[-1] > 200):
        _refuse_continuous(values)
    classes = _classes(values, {f"class {value}": value for value in kept}, void_values)
    if has_gaps:
        meanings = _join([f"{value} is '{name}'" for value, name in zip(kept, classes.labels, strict=True)])
        warnings.append(
            f"The mask values have gaps; each that occurs became a label: {meanings}. Name them with --values and "
            "--labels."
        )
    else:
        warnings.append(
            f"The labels have no names and are called after the mask values, '{classes.labels[0]}' to "
            f"'{classes.labels[-1]}'. Name them in {CODES} or with --labels."
        )
    _tell_void(values, void_values, warnings)
    return classes


def _refuse_greys(values: _MaskValues, kept: Sequence[int]) -> None:
    """Refuse greys of which it is unclear whether 255 is a class."""
    if len(kept) >= _MAX_EXACT_VALUES:
        _refuse_continuous(values)
    listed = ",".join(map(str, [*kept, 255]))
    trimap = f"--values 0,255 --void {kept[1]} if {kept[1]} means unlabelled, " if len(kept) == 2 else ""
    raise CannotTrain(
        f"The masks in {values.root} contain {values.describe()}, which look like greys and not like the indices "
        f"0, 1, 2, … of labels. Say what they mean: --values {listed} for {len(kept) + 1} classes, {trimap}or "
        "--void 255 if 255 means unlabelled."
    )


def _refuse_continuous(values: _MaskValues) -> None:
    raise CannotTrain(
        f"The masks in {values.root} contain {values.describe()}, as photos, depths or soft edges have them, and the "
        "labels have no names. If there are just two classes, black and white, use --values 0,255; otherwise save the "
        f"masks with the index of each pixel's label as its value, and name the labels in {CODES}."
    )


def _tell_void(values: _MaskValues, void: set[int], warnings: list[str]) -> None:
    occurring = sorted(void & set(values.totals))
    if occurring:
        warnings.append(
            f"Pixels of the value {_join(occurring)} ({values.share(occurring)}) count as unlabelled: they are not "
            "learnt."
        )


# Black and white


def _black_and_white_classes(
    values: _MaskValues, names: Sequence[str], rules: MaskRules, warnings: list[str]
) -> Classes | None:
    """Return the two classes of masks in black and white; None if the masks are not of this kind."""
    if rules.void >= 0 or len(names) not in (0, 2) or any(map(_is_void, names)):
        return None
    black, white = names or _BLACK_AND_WHITE
    if not values.lossy and _has_two_notations(values):
        ones, whites = (sum(value in counts for _, counts in values.files) for value in (1, 255))
        warnings.append(
            f"White is the value 1 in {ones} masks and 255 in {whites}: both were read as '{white}' "
            f"({values.share([1, 255])} of the pixels). Use --void 255 if 255 means unlabelled."
        )
        return _split_values(black, white, 1)
    if not _is_black_and_white(values.totals, is_lossy=bool(values.lossy)):
        return None
    _refuse_indices_among_greys(values)
    if set(values.totals) == {0, 255}:
        warnings.append(
            f"The masks are black and white: 0 was read as '{black}', 255 as '{white}' ({values.share([255])} of the "
            "pixels)."
        )
    else:
        edges = range(_MAX_DARK + 1, _MIN_LIGHT)
        nearer = f" Those from {edges[0]} to {edges[-1]} ({values.share(edges)}) count as the nearer one."
        warnings.append(
            f"The masks contain {len(values.totals)} values close to 0 and 255, as JPEG compression or soft edges "
            f"leave them: read as two classes, black as '{black}' and white as '{white}' "
            f"({values.share(range(128, 256))} of the pixels).{nearer if set(edges) & set(values.totals) else ''}"
        )
    return _split_values(black, white, 128)


def _has_two_notations(values: _MaskValues) -> bool:
    """Whether some masks consist of 0 and 1, others of 0 and 255, and none of 1 and 255."""
    if not {1, 255} <= set(values.totals) <= {0, 1, 255}:
        return False
    return not any(1 in counts and 255 in counts for _, counts in values.files)


def _split_values(black: str, white: str, first_white: int) -> Classes:
    index_of_value = np.zeros(256, np.uint8)
    index_of_value[first_white:] = 1
    return Classes((black, white), index_of_value)


def _is_black_and_white(totals: Counter[int], *, is_lossy: bool) -> bool:
    """Whether nearly all values are close to 0 or 255, and the others are spread as noise and soft edges are."""
    if set(totals) == {0, 255}:
        return True
    counts = np.zeros(256)
    counts[list(totals)] = list(totals.values())
    counts /= counts.sum()
    dark, light, between = counts[: _MAX_DARK + 1], counts[_MIN_LIGHT:], counts[_MAX_DARK + 1 : _MIN_LIGHT]
    if not (dark.any() and light.any()) or not (is_lossy or _is_smeared(totals)):
        return False
    peak = np.convolve(between, np.ones(_PEAK_WIDTH)).max()
    is_third_grey = peak > _MIN_PEAK and peak > between.sum() / 2
    return not is_third_grey and between.sum() <= min(_MAX_BETWEEN, dark.sum())


def _is_smeared(totals: Counter[int]) -> bool:
    """Whether values of a mask saved without losses are those of noise or soft edges rather than indices of classes.

    Indices of many classes, with 255 for void, are mostly dark as well, but leave out the greys just below 255.
    """
    if len(totals) <= _MAX_EXACT_VALUES:
        return len(totals) == 2 and 255 not in totals
    light = sum(_MIN_LIGHT <= value < 255 for value in totals)
    return light >= _MIN_SMEARED or (light > 0 and any(128 <= value < _MIN_LIGHT for value in totals))


def _refuse_indices_among_greys(values: _MaskValues) -> None:
    """Refuse masks of 0 and 1 among black-and-white ones with noise, in which 1 is nearly black."""
    for path, counts in values.files:
        if path not in values.lossy and len(counts) == 2 and min(counts) == 0 and max(counts) <= _MAX_DARK:
            raise CannotTrain(
                f"{path} contains only {_join(sorted(counts))}, while other masks in {values.root} are black and white "
                f"(0 and 255, as {values.example(max(values.totals))}). Save all masks with the same values."
            )


# Given values


def _classes_of_given_values(
    values: _MaskValues, names: Sequence[str], rules: MaskRules, warnings: list[str]
) -> Classes:
    """Return the classes with the mask values that the user gives."""
    given = _parse_values(rules.values)
    if names and len(names) != len(given):
        raise CannotTrain(f"--values has {len(given)} values for {len(names)} labels ({_join(names)}).")
    default = _BLACK_AND_WHITE if given == [0, 255] else [f"class {value}" for value in given]
    value_of_name = dict(zip(names or default, given, strict=True))
    void = {rules.void} if rules.void >= 0 else {value for name, value in value_of_name.items() if _is_void(name)}
    void |= {255} - set(given)
    others = sorted(set(values.totals) - set(given) - void)
    kept = [value for value in given if value not in void]
    if others and len(kept) == 2 and not void & set(values.totals) and abs(kept[1] - kept[0]) >= _MIN_STEP:
        warnings.append(
            f"{len(others)} other values than {_join(kept)}, {values.share(others)} of the pixels, count as the nearer "
            "one."
        )
        nearest = np.abs(np.arange(256)[:, np.newaxis] - kept).argmin(axis=1).astype(np.uint8)
        if len(set(nearest[list(values.totals)].tolist())) == 2:
            return Classes(tuple(name for name, value in value_of_name.items() if value in kept), nearest)
    if others:
        raise CannotTrain(
            f"{values.example(others[0])} contains the value {others[0]}, which --values ({_join(given)}) lacks; "
            f"{len(others)} such values are in {values.share(others)} of the pixels. Add it, or use --void "
            f"{others[0]} if it means unlabelled."
        )
    _tell_void(values, void, warnings)
    return _classes(values, value_of_name, void)


def _parse_values(texts: Sequence[str]) -> list[int]:
    values = [int(text) if re.fullmatch(r"\d{1,3}", text) else -1 for text in texts]
    if not all(0 <= value <= 255 for value in values) or len(set(values)) < len(values):
        raise CannotTrain(f"--values ({','.join(texts)}) must be different whole numbers from 0 to 255.")
    return values


def _palette_colours(masks: Sequence[tuple[Path, MaskContents]], classes: Classes) -> tuple[Colour, ...]:
    """Return the colours of the labels in the masks' palettes; empty if there is none, or two labels share a colour."""
    occurring = {value: colour for _, contents in masks for value, colour in contents.palette.items()}
    if not occurring:
        return ()
    # A label that no mask contains has a colour as well.
    palette = decode_mask(next(path for path, contents in masks if contents.palette)).palette
    colours: list[Colour] = []
    for index in range(len(classes.labels)):
        values = np.flatnonzero(classes.index_of_value == index).tolist()
        value = next((value for value in values if value in occurring), values[0])
        colours.append((*occurring[value].to_bytes(3),) if value in occurring else (*palette[value].tolist(),))
    return tuple(colours) if len(set(colours)) == len(colours) else ()


def _join(items: Iterable[object]) -> str:
    """Return a list in words; a long one is shortened."""
    texts = list(map(str, items))
    if len(texts) > _MAX_LISTED:
        return ", ".join([*texts[: _MAX_LISTED - 1], "…", texts[-1]])
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
