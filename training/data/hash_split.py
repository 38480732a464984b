"""Deterministic validation split by a hash of each sample's group."""

import hashlib
from collections.abc import Sequence


def validation_split(groups: Sequence[str], labels: Sequence[int], fraction: float) -> list[bool]:
    """Return which samples are for validation: about `fraction` of each label, the same on every run and machine.

    A sample's side of the split depends only on the hash of its group. Samples of one group (copies of an image)
    therefore stay together, and adding data moves few old groups to the other side. Each label with two or more groups
    that no smaller label has too has at least one on either side; a single group is for training.
    """
    held_out: set[str] = set()
    seen: set[str] = set()
    for label in sorted(set(labels)):
        label_groups = {group for group, other in zip(groups, labels, strict=True) if other == label} - seen
        seen |= label_groups
        ranked = sorted(label_groups, key=lambda group: hashlib.sha256(group.encode()).digest())
        held_out.update(ranked[: max(1, round(fraction * len(ranked)))] if len(ranked) > 1 else [])
    return [group in held_out for group in groups]
