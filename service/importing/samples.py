"""Different samples for a graph, made from examples: to see what it returns, and whether batches matter."""

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.contract import Array, Arrays, Limits, Task

SAMPLES = 8


def varied_samples(task: Task, requests: Sequence[Mapping[str, object]]) -> Arrays:
    """Return SAMPLES samples of one shape, all different: variations of the first sample of each of the requests."""
    samples = [task.preprocess(task.decode(task.parse(dict(body), Limits()), Limits())).arrays for body in requests]
    first = {name: array.shape[1:] for name, array in samples[0].items()}
    alike = [arrays for arrays in samples if {name: array.shape[1:] for name, array in arrays.items()} == first]
    return {name: np.stack([_vary(alike[i % len(alike)][name][0], i) for i in range(SAMPLES)]) for name in samples[0]}


def _vary(array: Array, step: int) -> Array:
    """Return a variation that is valid wherever the array is.

    Indices: the last ones are 0, which is padding or a missing value in every task. Flags: shifted. Pixels: shifted and
    darkened, since many networks see no difference in an image that is only shifted. Numbers: scaled.
    """
    if array.dtype == np.int64:
        kept = len(array) - len(array) * step // (2 * SAMPLES)
        return np.where(np.arange(len(array)) < kept, array, 0)
    if array.dtype == np.uint8:
        shifted = np.roll(array, len(array) * step // SAMPLES, axis=0)
        return shifted if array.ndim == 1 else (shifted * (1 - step / (2 * SAMPLES))).astype(np.uint8)
    return (array * (1 + step / SAMPLES)).astype(array.dtype)
