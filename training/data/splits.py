"""Deterministic validation split by a hash of each sample's group."""

import hashlib
from collections.abc import Sequence


def validation_split(groups: Sequence[str], labels: Sequence[int], share: float) -> list[bool]:
    """Which samples are for validation: about `share` of each label, the same ones in every run and on any machine.

    A sample's place follows from the hash of its group alone, so samples of one group (the copies of a picture) stay
    on one side, and adding data moves no old group from one side to the other by much. Every label keeps at least one
    group on each side where it has two.
    """
    chosen: set[str] = set()
    seen: set[str] = set()
    for label in sorted(set(labels)):
        mine = {group for group, other in zip(groups, labels, strict=True) if other == label} - seen
        seen |= mine
        ranked = sorted(mine, key=lambda group: hashlib.sha256(group.encode()).digest())
        chosen.update(ranked[: max(1, round(share * len(ranked)))] if len(ranked) > 1 else [])
    return [group in chosen for group in groups]
