"""Names of labels: spellings of one label that differ only in case or spaces, or all mean true or false, are merged."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.near_names import nearest_name
from training.core.sentences import list_items

_TRUE = frozenset(("true", "t", "yes", "y", "1", "1.0", "on", "wahr", "ja", "vrai", "oui", "verdadero", "sí", "si"))
_FALSE = frozenset(("false", "f", "no", "n", "0", "0.0", "off", "falsch", "nein", "faux", "non", "falso"))
"""Also what spreadsheets and people write in German, French and Spanish."""
_LETTER_PAIRS = (frozenset("tf"), frozenset("yn"), frozenset("01"))
_MAX_SHOWN = 5


@dataclass(frozen=True)
class LabelNames:
    """The names of labels.

    Attributes:
        names: from each spelling to the name of its label.
        notes: sentences for the user that name the spellings which were merged.
    """

    names: Mapping[str, str]
    notes: tuple[str, ...] = ()


def merge_spellings(counts: Mapping[str, int], *, truth_values: bool = True) -> LabelNames:
    """Name the labels that are spelt so, and so often each; the commonest spelling is the name.

    In a column (`truth_values`), more than two spellings that all mean true or false (True, TRUE, yes, 1 and False, no,
    0) are two labels; folders with such names were made by hand, each for a label of its own. Otherwise spellings that
    differ only in case, spaces or Unicode form are one label, unless they are single letters: `a` and `A` may be
    letters to tell apart, and a note says that they remain two labels.
    """
    keys = {spelling: normalise_spelling(spelling) for spelling in counts}
    if truth_values and len(counts) > 2 and _are_truth_values(set(keys.values())):
        groups = _group({spelling: "true" if key in _TRUE else "false" for spelling, key in keys.items()})
        return _merge(counts, groups, "The labels are all spellings of true and false")
    words = {spelling: key for spelling, key in keys.items() if len(spelling) > 1}
    merged = _merge(counts, _group(words), "Labels that differ only in case or spaces are read as one")
    letters = _group({spelling: key for spelling, key in keys.items() if len(spelling) == 1})
    if not letters:
        return merged
    note = f"Single letters that differ only in case are labels of their own: {_list_groups(letters)}."
    return LabelNames(merged.names, (*merged.notes, note))


def suggest_label(label: str, counts: Mapping[str, int]) -> str:
    """Return a sentence that names the commoner label of which a rare one may be a misspelling; empty if none is near.

    Labels that differ in digits only, such as class_1 and class_2, are not misspelt.
    """
    words = _without_digits(label)
    commoner = [
        other for other, count in counts.items() if count > counts[label] and _without_digits(other) != words != ""
    ]
    near = nearest_name(label, commoner)
    return f" If it is a misspelling of '{near}' ({counts[near]:,}), correct it." if near else ""


def _without_digits(label: str) -> str:
    return re.sub(r"[\W\d]+", "", label)


def normalise_spelling(spelling: str) -> str:
    """Return what is the same for spellings that differ only in case, spaces or Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", spelling).casefold().split())


def _are_truth_values(keys: set[str]) -> bool:
    """Whether all mean true or false. N, F and Y may be anything: single letters must be of one pair."""
    is_truth = keys <= _TRUE | _FALSE
    return is_truth and (any(len(key) > 1 for key in keys) or any(keys <= pair for pair in _LETTER_PAIRS))


def _group(keys: Mapping[str, str]) -> list[list[str]]:
    """Return the spellings that share a key, sorted; those that are alone are left out."""
    groups: dict[str, list[str]] = {}
    for spelling in sorted(keys):
        groups.setdefault(keys[spelling], []).append(spelling)
    return [group for group in groups.values() if len(group) > 1]


def _merge(counts: Mapping[str, int], groups: Sequence[Sequence[str]], reason: str) -> LabelNames:
    names = {spelling: spelling for spelling in counts}
    for group in groups:
        commonest = max(group, key=lambda spelling: counts[spelling])
        names |= dict.fromkeys(group, commonest)
    if not groups:
        return LabelNames(names)
    shown = "; ".join(f"{_list(group, counts)} as '{names[group[0]]}'" for group in groups[:_MAX_SHOWN])
    more = f"; and {len(groups) - _MAX_SHOWN:,} more" if len(groups) > _MAX_SHOWN else ""
    return LabelNames(names, (f"{reason}: {shown}{more}.",))


def _list(group: Sequence[str], counts: Mapping[str, int]) -> str:
    return ", ".join(f"'{spelling}' ({counts[spelling]:,})" for spelling in group)


def _list_groups(groups: Sequence[Sequence[str]]) -> str:
    return list_items(["/".join(group) for group in groups])
