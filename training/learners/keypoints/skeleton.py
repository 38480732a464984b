"""Options that refer to points by name: pairs, mirror counterparts, and the pair that normalises errors."""

from collections.abc import Sequence

from training.core.errors import CannotTrain
from training.core.sentences import list_items


def parse_pairs(names: Sequence[str], pairs: Sequence[str], flag: str) -> tuple[tuple[int, int], ...]:
    """Return pairs written as `a=b` as indices. Raises CannotTrain for anything else."""
    indices = []
    for pair in pairs:
        first, separator, second = (part.strip() for part in pair.partition("="))
        if not separator or first not in names or second not in names:
            raise CannotTrain(f"--{flag} {pair}: give two points as a=b; the points are {list_items(names, 8)}.")
        indices.append((names.index(first), names.index(second)))
    return tuple(indices)


def find_flip_indices(names: Sequence[str], flip_pairs: Sequence[str]) -> tuple[int, ...]:
    """Return, for each point, the index of its counterpart in the mirror image, or its own if it has none.

    Without `flip_pairs`, points whose names differ by left and right are counterparts. Returns an empty tuple if no
    point has a counterpart. Raises CannotTrain if a point would have two.
    """
    identity = list(range(len(names)))
    indices = identity.copy()
    if flip_pairs:
        for first, second in parse_pairs(names, flip_pairs, "flip-pairs"):
            if indices[first] != first or indices[second] != second or first == second:
                raise CannotTrain(
                    f"--flip-pairs: '{names[first]}' and '{names[second]}' cannot be a pair; a point can be in one "
                    "pair only."
                )
            indices[first], indices[second] = second, first
        return tuple(indices)
    for index, name in enumerate(names):
        mirrored = name.replace("left", "\0").replace("right", "left").replace("\0", "right")
        if mirrored != name and mirrored in names:
            indices[index] = names.index(mirrored)
    return tuple(indices) if indices != identity else ()


def parse_normalisation_pair(names: Sequence[str], pair: Sequence[str]) -> tuple[int, int] | None:
    """Return the indices of the two points of `--normalisation-pair`; None if it is empty. Raises CannotTrain."""
    if not pair:
        return None
    if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(names):
        raise CannotTrain(
            f"--normalisation-pair {','.join(pair)}: give two points as a,b; the points are {list_items(names, 8)}."
        )
    return names.index(pair[0]), names.index(pair[1])
