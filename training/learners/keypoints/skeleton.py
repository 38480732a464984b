"""What is said of points by their names: pairs, mirror twins, the two that errors are relative to."""

from collections.abc import Sequence

from training.core.errors import CannotTrain


def pairs_of(names: Sequence[str], pairs: Sequence[str], flag: str) -> tuple[tuple[int, int], ...]:
    """Pairs written as `a=b`, as indices. Raises CannotTrain where one is no pair of points."""
    found = []
    for pair in pairs:
        one, sign, other = (part.strip() for part in pair.partition("="))
        if not sign or one not in names or other not in names:
            raise CannotTrain(f"--{flag} {pair}: it needs the names of two points, as a=b, of {_some(names)}.")
        found.append((names.index(one), names.index(other)))
    return tuple(found)


def twins_of(names: Sequence[str], pairs: Sequence[str]) -> tuple[int, ...]:
    """The index of each point's mirror twin, itself where it has none; empty where nothing says what is left.

    Raises CannotTrain where a point would have two twins.
    """
    found = list(range(len(names)))
    if pairs:
        for one, other in pairs_of(names, pairs, "twins"):
            if found[one] != one or found[other] != other or one == other:
                raise CannotTrain(
                    f"--twins: '{names[one]}' and '{names[other]}' cannot be twins, one has a twin already."
                )
            found[one], found[other] = other, one
        return tuple(found)
    for index, name in enumerate(names):
        twin = name.replace("left", "\0").replace("right", "left").replace("\0", "right")
        if twin != name and twin in names:
            found[index] = names.index(twin)
    return tuple(found) if found != list(range(len(names))) else ()


def pair_of(names: Sequence[str], pair: Sequence[str]) -> tuple[int, int] | None:
    """The indices of two points that `--between` names; None where it names none. Raises CannotTrain."""
    if not pair:
        return None
    if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(names):
        raise CannotTrain(f"--between {','.join(pair)}: it needs two points, as a,b, of {_some(names)}.")
    return names.index(pair[0]), names.index(pair[1])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
