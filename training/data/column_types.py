"""Infers by majority what the texts of a column are, numbers, dates or categories, and says what is not obvious."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from training.core.errors import CannotTrain
from training.core.sentences import count_of, list_items, list_quoted, was
from training.data.date_texts import AmbiguousDates, DateTexts, read_date_texts
from training.data.number_texts import (
    MAX_EXACT,
    NumberStyle,
    find_sign,
    find_style,
    padded_example,
    parse_numbers,
    to_plain,
    unit_example,
    whole_floats_to_integers,
    without_sign,
)

MAX_ODD = 0.1
"""Fraction of the values of a column that may be of another kind, and count as missing. With more, it is categories."""
_MAX_ODD_IF_NAMED = 0.5
"""The same for columns that the user named in --numbers or --dates."""
_MIN_NOTABLE = 0.5
"""From this fraction of numbers or dates on, a sentence says why a column became categories all the same."""
MAX_NUMERIC_CLASSES = 20
"""A numeric target with more distinct values than this is a number to predict, not a class."""
_MAX_MISSING_TEXTS = 20
_COMPACT_DATE = r"^(19|20)[0-9]{6}([0-9]{4}([0-9]{2})?)?$"
_MAX_SHOWN = 3


@dataclass(frozen=True)
class ColumnKinds:
    """What the user specifies about columns, overriding what is inferred; `parts` are the parts of dates to read."""

    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class TypeRules:
    """What is known about columns before their values are read.

    Attributes:
        kinds: what the user says about them.
        target: the column to predict; empty: none.
        target_kind: number, class or auto.
        needed: columns that are read even if they are no inputs, such as the one that splits the table.
        decimal: the decimal sign, a point or a comma; empty: recognised.
        dayfirst: whether the day comes first in dates that leave it open; None: such dates are refused.
    """

    kinds: ColumnKinds = field(default_factory=ColumnKinds)
    target: str = ""
    target_kind: str = "auto"
    needed: tuple[str, ...] = ()
    decimal: str = ""
    dayfirst: bool | None = None

    def is_quiet(self, name: str) -> bool:
        """Whether nothing is said about a column, and nothing refused, since the model does not read it."""
        return name in self.kinds.ignored and name not in self.needed and name != self.target

    def max_odd(self, name: str, named: Sequence[str]) -> float:
        """Return the fraction of values of another kind that a column may have."""
        return _MAX_ODD_IF_NAMED if name in named and name != self.target else MAX_ODD


@dataclass
class TypedColumns:
    """Columns with their types.

    Attributes:
        columns: in order.
        warnings: sentences for the user.
        category_notes: by column, that sentence of them which says why it is one of categories.
        missing_texts: by column, the texts without a digit that count as missing, since the column is one of numbers or
            dates. Requests may contain them too.
    """

    columns: list[pl.Series] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    category_notes: dict[str, str] = field(default_factory=dict)
    missing_texts: dict[str, tuple[str, ...]] = field(default_factory=dict)


def infer_types(frame: pl.DataFrame, rules: TypeRules, *, from_text: bool) -> TypedColumns:
    """Return the columns with their types. Texts are stripped, and null where they stand for a missing value.

    A column is one of numbers, or of dates, if at most `MAX_ODD` of its values are of another kind; these become null
    and are counted. Numbers with leading zeros (00123) are codes, and stay text; so do whole numbers beyond 64 bits.
    A currency or percent sign that nearly all values of a column have is left out, with a sentence.
    A column of eight digits is one of dates if all of them are (20201231). The target is a column of numbers with odd
    values only if it has more than `MAX_NUMERIC_CLASSES` distinct numbers: otherwise the odd values are classes.

    `from_text` is False for files in which columns have types: then a sentence says where text is read as another kind.

    Raises CannotTrain: a column of dates, or the decimal sign of a column, is ambiguous.
    """
    if rules.decimal not in ("", ".", ","):
        raise CannotTrain(f"--decimal '{rules.decimal}': the decimal sign is '.' or ','.")
    return _Inference(rules, from_text=from_text).infer(frame)


class _Inference:
    def __init__(self, rules: TypeRules, *, from_text: bool) -> None:
        self._rules, self._from_text = rules, from_text
        self._result = TypedColumns()
        self._numbers_with_commas: dict[str, tuple[str, str]] = {}
        self._numbers_in_groups: dict[str, tuple[str, str]] = {}

    def infer(self, frame: pl.DataFrame) -> TypedColumns:
        result = self._result
        texts = {name: frame[name] for name, dtype in frame.schema.items() if dtype == pl.String}
        signs = {name: sign for name, column in texts.items() if (sign := self._find_sign(column))}
        texts |= {name: without_sign(texts[name], sign) for name, sign in signs.items()}
        styles = {name: find_style(column) for name, column in texts.items()}
        decimals = self._find_decimals(texts, styles)
        for name in frame.columns:
            column = frame[name]
            if name in texts and column.null_count() < len(column):
                inferred = self._infer(texts[name], styles[name], decimals[name])
                if name in signs and inferred.dtype.is_numeric():
                    self._note_sign(column, signs[name], to_plain(texts[name], decimals[name]))
                # A sign is left out of numbers only.
                column = inferred if inferred.dtype != pl.String else column
            result.columns.append(whole_floats_to_integers(column) if name == self._rules.target else column)
        self._note_number_styles()
        return result

    def _warn(self, column: str, sentence: str) -> None:
        if not self._rules.is_quiet(column):
            self._result.warnings.append(sentence)

    def _warn_category(self, column: str, sentence: str) -> None:
        self._warn(column, sentence)
        self._result.category_notes[column] = sentence

    def _find_sign(self, texts: pl.Series) -> str:
        """Return the sign to leave out; empty for categories and classes."""
        name, rules = texts.name, self._rules
        sign = "" if self._is_category(name) else find_sign(texts, 1 - rules.max_odd(name, rules.kinds.numbers))
        if sign and name == rules.target and not self._is_number_target(without_sign(texts, sign)):
            return ""
        return sign

    def _note_sign(self, texts: pl.Series, sign: str, plain: pl.Series) -> None:
        is_signed = texts.str.contains(sign, literal=True)
        text, number = pl.DataFrame({"text": texts, "plain": plain}).filter(is_signed).drop_nulls().row(0)
        without = int((plain.is_not_null() & ~is_signed).sum())
        others = f" {count_of(without, 'number')} without it {was(without)} read alike." if without else ""
        self._warn(
            texts.name,
            f"Column '{texts.name}': the sign {sign} is left out; '{text}' is read as {number}, and requests must "
            f"write it so.{others}",
        )

    def _find_decimals(self, texts: Mapping[str, pl.Series], styles: Mapping[str, NumberStyle]) -> dict[str, str]:
        """Return the decimal sign of each column: what its values decide, or what those of other columns do."""
        decided = {
            name: self._rules.decimal or style.decimal
            for name, style in styles.items()
            if style.best >= _MIN_NOTABLE * style.known > 0
        }
        seen = set(decided.values()) - {""}
        common = seen.pop() if len(seen) == 1 else ""
        decimals = {}
        for name, style in styles.items():
            decimals[name] = decided.get(name) or self._rules.decimal or common or "."
            is_open = decided.get(name) == "" and (style.has_commas or style.has_points)
            if is_open and not common and (style.has_commas or seen) and not self._is_category(name):
                example = texts[name].filter(texts[name].str.contains("[0-9][.,][0-9]"))[0]
                raise CannotTrain(
                    f"Column '{name}' contains numbers like '{example}', in which the {_MARKS[_mark(example)]} may be "
                    "a decimal sign or may separate thousands; add --decimal . or --decimal , to say which sign is the "
                    "decimal one."
                )
        return decimals

    def _is_category(self, name: str) -> bool:
        return name in self._rules.kinds.categories or self._rules.is_quiet(name)

    def _infer(self, texts: pl.Series, style: NumberStyle, decimal: str) -> pl.Series:
        name, rules = texts.name, self._rules
        if name in rules.kinds.categories:
            return _whole_numbers(texts)
        count = style.points if decimal == "." else style.commas
        odd = style.known - count
        is_number = odd <= rules.max_odd(name, rules.kinds.numbers) * style.known
        if is_number and odd and name == rules.target:
            is_number = self._is_number_target(to_plain(texts, decimal))
        if is_number:
            return self._read_numbers(texts, decimal)
        dated = None if name == rules.target or name in rules.kinds.numbers else self._read_dates(texts)
        if dated is not None:
            return dated
        if name != rules.target:
            self._explain_category(texts, to_plain(texts, decimal), "numbers", "--numbers")
            if 2 * style.best < style.known and (example := unit_example(texts)):
                self._warn_category(
                    name,
                    f"Column '{name}' is read as categories, since its values are not plain numbers ('{example}'); "
                    "remove units to have it read as numbers.",
                )
        return texts

    def _is_number_target(self, plain: pl.Series) -> bool:
        kind = self._rules.target_kind
        return kind == "number" or (kind == "auto" and plain.drop_nulls().n_unique() > MAX_NUMERIC_CLASSES)

    def _read_numbers(self, texts: pl.Series, decimal: str) -> pl.Series:
        """Return numbers, or the texts if they are codes; or dates if these are written with digits only."""
        name, plain = texts.name, to_plain(texts, decimal)
        is_named = name in self._rules.kinds.numbers
        known = texts.drop_nulls()
        may_be_dates = not is_named and name != self._rules.target and known.str.contains(_COMPACT_DATE).all()
        if may_be_dates and (dated := self._read_dates(texts)) is not None:
            return dated
        if not is_named and (code := padded_example(plain)):
            if name != self._rules.target:
                self._warn_category(
                    name,
                    f"Column '{name}' is read as categories, since it contains numbers with leading zeros ('{code}'), "
                    "as codes have.",
                )
            return texts
        numbers = parse_numbers(plain)
        if numbers is None and is_named:
            return plain.cast(pl.Float64, strict=False)
        if numbers is None:
            digits = max(len(text) for text in known)
            self._warn_category(
                name,
                f"Column '{name}' contains whole numbers of up to {digits} digits, which are read "
                "as text: they are identifiers and not amounts.",
            )
            return texts
        self._count_odd(texts, numbers, "number")
        self._keep_examples(texts, plain, decimal)
        return numbers

    def _read_dates(self, texts: pl.Series) -> pl.Series | None:
        name, rules = texts.name, self._rules
        try:
            read = read_date_texts(texts, dayfirst=rules.dayfirst)
        except AmbiguousDates as error:
            if rules.is_quiet(name):
                return None
            raise CannotTrain(
                f"Column '{name}' {error}. If these are no dates, name the column in --categories."
            ) from None
        if read is None:
            return None
        known, dates = len(texts) - texts.null_count(), len(read.dates) - read.dates.null_count()
        is_compact = texts.drop_nulls().str.contains(_COMPACT_DATE).all()
        if known - dates > (0 if is_compact else rules.max_odd(name, rules.kinds.dates)) * known:
            if not is_compact:
                self._explain_category(texts, read.dates, "dates", "--dates")
            return None
        self._count_odd(texts, read.dates, "date")
        if sentence := describe_dates(name, read):
            advice = " If it contains numbers or codes, name it in --numbers or --categories." if is_compact else ""
            self._warn(name, sentence + advice)
        elif not self._from_text:
            self._warn(name, f"Column '{name}' is text in the file, and is read as dates.")
        return read.dates

    def _count_odd(self, texts: pl.Series, values: pl.Series, kind: str) -> None:
        odd = texts.filter(texts.is_not_null() & values.is_null())
        if not len(odd):
            return
        name, known = texts.name, len(texts) - texts.null_count()
        shown = _list_values(odd)
        is_not, counts = (f"is not a {kind}", "counts") if len(odd) == 1 else (f"are not {kind}s", "count")
        cure = "use --kind class" if name == self._rules.target else "name it in --categories"
        advice = f" If the column contains codes, {cure}." if kind == "number" else ""
        self._warn(
            name,
            f"Column '{name}': {len(odd):,} of {known:,} values {is_not} ({shown}) and {counts} as missing.{advice}",
        )
        marks = odd.filter(~odd.str.contains(r"\d")).value_counts(sort=True)[name].to_list()
        if marks and name != self._rules.target:
            self._result.missing_texts[name] = tuple(sorted(marks[:_MAX_MISSING_TEXTS]))

    def _explain_category(self, texts: pl.Series, values: pl.Series, kinds: str, flag: str) -> None:
        """Say why a column is one of categories although at least half of its values are of another kind."""
        known, odd = texts.drop_nulls(), texts.filter(texts.is_not_null() & values.is_null())
        if not 0 < len(odd) <= (1 - _MIN_NOTABLE) * len(known):
            return
        self._warn_category(
            texts.name,
            f"Column '{texts.name}' is read as categories, because {len(odd):,} of its {len(known):,} values "
            f"are not {kinds} ({_list_values(odd)}); to count these as missing, name it in {flag}.",
        )

    def _keep_examples(self, texts: pl.Series, plain: pl.Series, decimal: str) -> None:
        name = texts.name
        if self._rules.is_quiet(name):
            return
        both = pl.DataFrame({"text": texts, "plain": plain}).drop_nulls()
        commas = both.filter(pl.col("text").str.contains(",", literal=True)) if decimal == "," else both.clear()
        groups = both.filter(pl.col("text").str.len_chars() > pl.col("plain").str.len_chars())
        if len(commas):
            self._numbers_with_commas[name] = commas.row(0)
        if len(groups):
            self._numbers_in_groups[name] = groups.row(0)
        if not (len(commas) or len(groups) or self._from_text):
            self._warn(
                name,
                f"Column '{name}' is text in the file, and is read as numbers. If it contains codes, name it in "
                "--categories.",
            )

    def _note_number_styles(self) -> None:
        for found, what in (
            (self._numbers_with_commas, "Commas are read as decimal commas"),
            (self._numbers_in_groups, "Thousands are separated"),
        ):
            if found:
                (text, plain), names = next(iter(found.values())), list(found)
                listed = f"column '{names[0]}'" if len(names) == 1 else f"{len(names)} columns ({list_items(names)})"
                self._result.warnings.append(f"{what} in {listed}: '{text}' is {plain}, and requests must write it so.")


_MARKS = {",": "comma", ".": "point"}


def _mark(example: str) -> str:
    return "," if "," in example else "."


def _list_values(values: pl.Series) -> str:
    counts = values.alias("value").value_counts(sort=True).sort("count", "value", descending=[True, False])
    return list_quoted([value[:40] for value in counts["value"].head(_MAX_SHOWN + 1).to_list()], _MAX_SHOWN)


def _whole_numbers(texts: pl.Series) -> pl.Series:
    """Return categories as integers if all are written so, also as 12.0; otherwise the texts."""
    known = texts.drop_nulls()
    if not known.str.contains(r"^[-+]?(0|[1-9][0-9]{0,17})(\.0+)?$").all():
        return texts
    return texts.str.replace(r"\.0+$", "").cast(pl.Int64)


def is_identifier(values: pl.Series) -> bool:
    """Whether whole numbers are too large for floats, and so are identifiers and no amounts."""
    return values.dtype.is_integer() and bool((values.drop_nulls().cast(pl.Int128).abs() > MAX_EXACT).any())


def describe_dates(name: str, read: DateTexts) -> str:
    """Say how dates were read that are not written as requests write them; empty if all are."""
    if read.is_plain:
        return ""
    text, date = read.example
    order = f", the {read.order} first" if read.order else ""
    zones = list_items(read.zones, _MAX_SHOWN)
    zone = f" Time zones ({zones}) are left out: the time on the clock counts." if zones else ""
    return f"Column '{name}' is read as dates{order}: '{text}' is {date}, and requests must write it so.{zone}"
