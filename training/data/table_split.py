"""Split the rows of a table into training and validation: at random, by a column, or by time."""

import hashlib
from dataclasses import dataclass, replace
from datetime import date, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.core.errors import CannotTrain
from training.data.date_texts import AmbiguousDates, read_moment
from training.data.hash_split import validation_split
from training.data.tables import row_hashes

_TRAIN = ("train", "training", "0", "false", "no")
_VALID = ("valid", "validation", "val", "dev", "1", "true", "yes")
_UNUSED = ("test", "holdout")
_WEEK = 7
_BLOCKS = 10

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """The split of a table.

    Attributes:
        held_out: one value per row: whether it is for validation.
        calibration: one value per validation row, in order: whether it is in the half that may be used to
            calibrate; the other half measures the calibrated result.
        used: one value per row: whether it is on either side; the other rows are left out.
        method: how the rows were split.
        calibration_rule: how the two halves were chosen.
    """

    held_out: Mask
    calibration: Mask
    used: Mask
    method: str
    calibration_rule: str = "by a hash of the row"


@dataclass(frozen=True)
class Splitter:
    """How to split a table.

    Attributes:
        fraction: fraction of the rows to hold out, if no column decides.
        column: column that says train or valid for each row; empty: none.
        time: column by which the latest rows are held out; empty: rows are held out at random.
        since: first time that is held out; empty: it follows from `fraction`.
        dayfirst: whether the day comes first in `since`, if it leaves that open.
    """

    fraction: float
    column: str = ""
    time: str = ""
    since: str = ""
    dayfirst: bool | None = None

    def check(self, frame: pl.DataFrame) -> None:
        """Raise CannotTrain if the options contradict each other or name a column that does not exist."""
        if self.column and self.time:
            raise CannotTrain("--split-column and --split-time exclude each other: choose one.")
        if self.since and not self.time:
            raise CannotTrain("--split-from needs --split-time, the column with the time of each row.")
        for flag, name in (("--split-column", self.column), ("--split-time", self.time)):
            if name and name not in frame.columns:
                raise CannotTrain(f"{flag} {name}: no such column; the columns are {', '.join(frame.columns)}.")
        if not 0 < self.fraction < 1:
            raise CannotTrain(f"--valid-fraction {self.fraction:g}: the fraction must be between 0 and 1.")
        if self.time and not (frame[self.time].dtype.is_temporal() or frame[self.time].dtype.is_numeric()):
            example = frame[self.time].drop_nulls().head(1).to_list()
            raise CannotTrain(
                f"--split-time {self.time} is not a column of times: {example} is neither a number nor a date like "
                "2012-09-01."
            )

    def split(self, frame: pl.DataFrame, strata: NDArray[np.integer]) -> Split:
        """Split the rows; a random split is stratified. Raises CannotTrain if a side would be empty."""
        if self.column:
            split = self._split_by_column(frame)
        elif self.time:
            split = self._split_by_time(frame)
        else:
            split = self._split_at_random(frame, strata)
        held_out = split.held_out[split.used]
        if held_out.all() or not held_out.any():
            side = "validation" if not held_out.any() else "training"
            raise CannotTrain(f"The split leaves no rows for {side} ({split.method}).")
        if split.calibration.all() or not split.calibration.any():
            alternate = np.arange(len(split.calibration)) % 2 == 0
            return replace(split, calibration=alternate, calibration_rule="every other row")
        return split

    def inner_holdout(self, frame: pl.DataFrame, strata: NDArray[np.integer]) -> Mask:
        """Return which training rows to hold out for choosing between settings without the validation rows.

        The latest rows, if validation uses the latest rows; every fifth row, if there are too few distinct times.
        """
        try:
            fraction = 0.1 if self.since else self.fraction
            return Splitter(fraction, time=self.time).split(frame, strata).held_out
        except CannotTrain:
            every_fifth: Mask = np.arange(frame.height) % 5 == 0
            return every_fifth

    def _split_at_random(self, frame: pl.DataFrame, strata: NDArray[np.integer]) -> Split:
        hashes = row_hashes(frame)
        held_out = np.array(validation_split(hashes, strata.tolist(), self.fraction))
        used = np.ones(len(held_out), bool)
        return Split(held_out, _calibration_half(hashes, held_out), used, "by a hash of the row")

    def _split_by_column(self, frame: pl.DataFrame) -> Split:
        values = [str(value).strip().lower() for value in frame[self.column].to_list()]
        unknown = sorted({value for value in values if value not in (*_TRAIN, *_VALID, *_UNUSED)})
        if unknown:
            raise CannotTrain(
                f"--split-column {self.column} contains '{unknown[0]}'; its values must be train or valid (rows marked "
                "test are left out)."
            )
        held_out = np.array([value in _VALID for value in values])
        used = np.array([value not in _UNUSED for value in values])
        method = f"by the column '{self.column}'"
        return Split(held_out, _calibration_half(row_hashes(frame), held_out), used, method)

    def _split_by_time(self, frame: pl.DataFrame) -> Split:
        times = frame[self.time]
        if self.since:
            first = _parse_time(self.since, times, self.dayfirst)
        else:
            count = max(1, round(self.fraction * len(times)))
            first = times.sort()[len(times) - count]
        held_out = (times >= first).to_numpy()
        calibration, rule = _alternate_blocks(times.filter(held_out)) if held_out.any() else (held_out[:0], "")
        used = np.ones(len(held_out), bool)
        return Split(held_out, calibration, used, f"by time, '{self.time}' from {first} on", rule)


def _parse_time(text: str, times: pl.Series, dayfirst: bool | None) -> date | float:
    """Return the value of `--split-from` in the type of the column. Raises CannotTrain."""
    kind = "a date like 2012-09-01" if times.dtype.is_temporal() else "a number"
    message = f"--split-from {text}: the column '{times.name}' needs {kind}."
    if not times.dtype.is_temporal():
        try:
            return float(text)
        except ValueError:
            raise CannotTrain(message) from None
    try:
        read = read_moment(text, dayfirst=dayfirst)
    except AmbiguousDates:
        raise CannotTrain(f"{message} Write the year first, since day and month may be either way round.") from None
    if read is None:
        raise CannotTrain(message)
    moment: datetime = read.dates.cast(pl.Datetime("us"))[0]
    return moment.date() if times.dtype == pl.Date else moment


def _alternate_blocks(times: pl.Series) -> tuple[Mask, str]:
    """Every other block of time; halves of single rows would be nearly equal, since rows an hour apart are."""
    if times.dtype.is_temporal():
        days = times.cast(pl.Date).to_physical().to_numpy().astype(np.int64)
        days = days - days.min()
        length = _WEEK if days.max() >= 4 * _WEEK else 1
        rule = "by every other week" if length == _WEEK else "by every other day"
        blocks = days // length
    else:
        rank = times.rank("dense").to_numpy().astype(np.int64) - 1
        blocks, rule = rank * _BLOCKS // (int(rank.max()) + 1), "by every other tenth of the time"
    return blocks % 2 == 0, rule


def _calibration_half(hashes: list[str], held_out: Mask) -> Mask:
    """Half of the validation rows; equal rows are in the same half."""
    validation = [row_hash for row_hash, is_held_out in zip(hashes, held_out, strict=True) if is_held_out]
    return np.array([hashlib.sha256(f"half {row_hash}".encode()).digest()[0] % 2 == 0 for row_hash in validation], bool)
