"""How the number of users changes over a run, as curves over its length: independent of Locust and of time."""

from collections.abc import Callable, Mapping

Shape = Callable[[float], float]
"""The fraction of the most users, for each fraction of the run."""
_STEPS = 5


def steps(progress: float) -> float:
    """Five steps of equal length: a fifth of the users more on each."""
    return (min(_STEPS - 1, int(progress * _STEPS)) + 1) / _STEPS


def spike(progress: float) -> float:
    """A fifth of the users; all of them during the middle fifth of the run; then a fifth again."""
    return 1.0 if 0.4 <= progress < 0.6 else 0.2


def soak(progress: float) -> float:
    """Rise during the first twentieth of the run, then stay."""
    return min(1.0, progress * 20)


SHAPES: Mapping[str, Shape] = {"steps": steps, "spike": spike, "soak": soak}


def users_at(shape: Shape, progress: float, most: int) -> int | None:
    """Return the number of users after this fraction of the run; None when it is over."""
    return None if progress >= 1 else max(1, round(most * shape(progress)))
