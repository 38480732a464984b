"""Which rows of a table are held out to validate: at random, by a column that says so, or the latest."""

import hashlib
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tasks._dates import read_date
from training.core.errors import CannotTrain
from training.data.splits import validation_split
from training.data.tables import row_groups

_TRAIN = ("train", "training", "0", "false", "no")
_VALID = ("valid", "validation", "val", "dev", "1", "true", "yes")
_ASIDE = ("test", "holdout")
_WEEK = 7
_BLOCKS = 10

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Split:
    """Where each row goes.

    Attributes:
        held: over all rows, those that validate.
        calibrates: over the rows that validate, in their order, the half that may calibrate; the other half measures
            what came of it.
        used: over all rows, those that are on either side; the others are kept aside.
        words: how it was done.
        halves: how the halves were told apart.
    """

    held: Mask
    calibrates: Mask
    used: Mask
    words: str
    halves: str = "by a hash of the row"


@dataclass(frozen=True)
class Splitter:
    """How a table is split.

    Attributes:
        share: of the rows that is held out, where no column says which.
        column: that says train or valid of each row; empty: none does.
        time: the column by which the latest rows are held out; empty: at random.
        since: the first moment that is held out; empty: as `share` has it.
    """

    share: float
    column: str = ""
    time: str = ""
    since: str = ""

    def check(self, frame: pl.DataFrame) -> None:
        """Raises CannotTrain where the options do not go together or name what is not there."""
        if self.column and self.time:
            raise CannotTrain("--split-column and --split-time are two ways to split a table: choose one.")
        if self.since and not self.time:
            raise CannotTrain("--split-from needs --split-time: the column that holds the time of each row.")
        for flag, name in (("--split-column", self.column), ("--split-time", self.time)):
            if name and name not in frame.columns:
                raise CannotTrain(f"{flag} {name}: there is no such column; they are {', '.join(frame.columns)}.")
        if not 0 < self.share < 1:
            raise CannotTrain(f"--valid-share {self.share:g}: a share lies between 0 and 1.")
        if self.time and not (frame[self.time].dtype.is_temporal() or frame[self.time].dtype.is_numeric()):
            example = frame[self.time].drop_nulls().head(1).to_list()
            raise CannotTrain(
                f"--split-time {self.time} holds no times: {example} is neither a number nor a date like 2012-09-01 or "
                "2012-09-01T08:00."
            )

    def split(self, frame: pl.DataFrame, strata: NDArray[np.integer]) -> Split:
        """Splits the rows; at random, each stratum alike. Raises CannotTrain where a side would be empty."""
        if self.column:
            found = self._by_column(frame)
        elif self.time:
            found = self._by_time(frame)
        else:
            found = self._at_random(frame, strata)
        held = found.held[found.used]
        if held.all() or not held.any():
            side = "validate" if not held.any() else "train"
            raise CannotTrain(f"The split leaves no rows to {side} ({found.words}).")
        if found.calibrates.all() or not found.calibrates.any():
            other = np.arange(len(found.calibrates)) % 2 == 0
            return replace(found, calibrates=other, halves="every other row")
        return found

    def within(self, frame: pl.DataFrame, strata: NDArray[np.integer]) -> Mask:
        """Which training rows are held out once more, to choose between settings without looking at what validates.

        The latest, where the latest validate; every fifth, where they are too few times to tell apart.
        """
        try:
            share = 0.1 if self.since else self.share
            return Splitter(share, time=self.time).split(frame, strata).held
        except CannotTrain:
            every_fifth: Mask = np.arange(frame.height) % 5 == 0
            return every_fifth

    def _at_random(self, frame: pl.DataFrame, strata: NDArray[np.integer]) -> Split:
        groups = row_groups(frame)
        held = np.array(validation_split(groups, strata.tolist(), self.share))
        return Split(held, _half(groups, held), np.ones(len(held), bool), "by a hash of the row")

    def _by_column(self, frame: pl.DataFrame) -> Split:
        values = [str(value).strip().lower() for value in frame[self.column].to_list()]
        odd = sorted({value for value in values if value not in (*_TRAIN, *_VALID, *_ASIDE)})
        if odd:
            raise CannotTrain(
                f"--split-column {self.column} holds '{odd[0]}'; it is to say train or valid (rows of test are left "
                "out)."
            )
        held = np.array([value in _VALID for value in values])
        used = np.array([value not in _ASIDE for value in values])
        return Split(held, _half(row_groups(frame), held), used, f"as the column '{self.column}' says")

    def _by_time(self, frame: pl.DataFrame) -> Split:
        times = frame[self.time]
        if self.since:
            first = _moment(self.since, times)
        else:
            count = max(1, round(self.share * len(times)))
            first = times.sort()[len(times) - count]
        held = (times >= first).to_numpy()
        calibrates, halves = _blocks(times.filter(held)) if held.any() else (held[:0], "")
        return Split(held, calibrates, np.ones(len(held), bool), f"by time, '{self.time}' from {first} on", halves)


def _moment(text: str, times: pl.Series) -> date | float:
    """What `--split-from` says, as the column's kind. Raises CannotTrain."""
    try:
        if not times.dtype.is_temporal():
            return float(text)
        found = read_date(text, clock=False)
        return found.date() if times.dtype == pl.Date else found
    except ValueError:
        kind = "a date like 2012-09-01" if times.dtype.is_temporal() else "a number"
        raise CannotTrain(f"--split-from {text}: the column '{times.name}' needs {kind}.") from None


def _blocks(times: pl.Series) -> tuple[Mask, str]:
    """Every other block of time: rows an hour apart are all but the same, so halves of single rows would be too."""
    if times.dtype.is_temporal():
        days = times.cast(pl.Date).to_physical().to_numpy().astype(np.int64)
        days = days - days.min()
        length = _WEEK if days.max() >= 4 * _WEEK else 1
        name = "by every other week" if length == _WEEK else "by every other day"
        blocks = days // length
    else:
        rank = times.rank("dense").to_numpy().astype(np.int64) - 1
        blocks, name = rank * _BLOCKS // (int(rank.max()) + 1), "by every other tenth of the time"
    return blocks % 2 == 0, name


def _half(groups: list[str], held: Mask) -> Mask:
    """Half of the rows that are held out, equal rows on one side."""
    mine = [group for group, kept in zip(groups, held, strict=True) if kept]
    return np.array([hashlib.sha256(f"half {group}".encode()).digest()[0] % 2 == 0 for group in mine], bool)
