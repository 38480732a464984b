"""Selection: which versions of a model are to be served, and which one answers requests that name none.

Functions of the versions that are present, of what an operator has chosen, and of the settings: the same folder,
choices and settings always lead to the same versions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.models.model import Choice, Entry, LoadState, Model

_HELD = (Choice.PROMOTED, Choice.LOADED, Choice.LOADED_BESIDE)
_NEWER_IS_SERVED = None
"""The explanation of a replaced version if the state says it all."""


@dataclass(frozen=True)
class Rule:
    """What the settings say about a model.

    Attributes:
        max_versions: number of newest versions to serve; 0 for all.
        pinned: the only version to serve; None if the model is not pinned.
    """

    max_versions: int = 1
    pinned: str | None = None


def in_order_of_preference(entries: Sequence[Entry], rule: Rule) -> list[Entry]:
    """Return the entries that may answer requests that name no version, the preferred one first."""
    if rule.pinned is not None:
        return [entry for entry in entries if entry.version == rule.pinned]

    def key(entry: Entry) -> tuple[bool, bool, int]:
        return entry.choice is not Choice.PROMOTED, entry.choice is Choice.LOADED_BESIDE, -entry.number

    return sorted((entry for entry in entries if entry.choice is not Choice.UNLOADED), key=key)


def default_model(entries: Sequence[Entry], rule: Rule) -> Model | None:
    """Return the model that answers requests that name no version."""
    return next((entry.model for entry in in_order_of_preference(entries, rule) if entry.model), None)


def is_needed(entry: Entry, served: int, rule: Rule) -> bool:
    """Return whether an entry is to be served, if `served` entries that are preferred to it are."""
    return not rule.max_versions or served < rule.max_versions or rule.pinned is not None or entry.choice in _HELD


def holds_choice(entries: Sequence[Entry], rule: Rule) -> bool:
    """Return whether one version is pinned or promoted, so that newer versions do not replace it."""
    return rule.pinned is not None or any(entry.choice is Choice.PROMOTED for entry in entries)


def replace_unneeded(entries: Sequence[Entry], rule: Rule) -> tuple[Entry, ...]:
    """Return the entries, with those marked as replaced that are not to be served beside the ones that are.

    A shadow version, and a version newer than all that are served, is not affected, unless a version is pinned or
    promoted. A version that failed keeps its reason.
    """
    needed, served = set(), 0
    for entry in in_order_of_preference(entries, rule):
        if is_needed(entry, served, rule):
            needed.add(entry.version)
        served += entry.model is not None
    return tuple(
        entry
        if entry.version in needed or entry.state is LoadState.FAILED
        else _replaced(entry, explain(entry, entries, rule))
        for entry in entries
    )


def _replaced(entry: Entry, explanation: str | None) -> Entry:
    return replace(entry, state=LoadState.REPLACED, loaded=None, explanation=explanation)


def explain(entry: Entry, entries: Sequence[Entry], rule: Rule) -> str | None:
    """Return why an entry is not served, if a newer version is not the reason."""
    if rule.pinned is not None:
        is_there = any(other.version == rule.pinned for other in entries)
        return f"The setting --pin selects version {rule.pinned}{'' if is_there else ', which is not there'}."
    if entry.choice is Choice.UNLOADED:
        return "It was unloaded by an operator. Promote or load it to serve it again."
    promoted = next((other for other in entries if other.choice is Choice.PROMOTED), None)
    if promoted is not None and promoted.number < entry.number:
        return f"Version {promoted.version} was promoted by an operator. Promote this version to serve it."
    return _NEWER_IS_SERVED


def promote(entries: Sequence[Entry], version: str) -> tuple[Entry, ...]:
    """Return the entries with the choice that a version answers requests that name none.

    If no newer version could, the settings decide from now on: versions that are published later replace it.
    """
    number = int(version)
    is_newest = not any(
        entry.number > number and entry.state is not LoadState.FAILED and entry.choice is not Choice.UNLOADED
        for entry in entries
    )

    def choice_for(entry: Entry) -> Choice:
        if entry.version == version:
            return Choice.AUTOMATIC if is_newest else Choice.PROMOTED
        return Choice.AUTOMATIC if entry.choice is Choice.PROMOTED else entry.choice

    return tuple(replace(entry, choice=choice_for(entry)) for entry in entries)
