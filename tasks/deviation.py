"""Batch deviation: how much a sample's outputs change when it runs in a batch, and how much they may.

Training measures the deviation before publishing, on samples of its data, and records it in the manifest. The service
measures it again on the goldens, on the device that will serve. Both use this module. It needs the tensor specs of
`tasks/contract.py`, which itself imports `tasks/comparison.py`: that is why the two comparisons are separate modules.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from tasks.contract import Array, Arrays, ElementKind, TensorSpec, count_samples

FLOAT32_TOLERANCE: Mapping[ElementKind, float] = MappingProxyType({"value": 1e-4, "class": 1e-3, "pixel": 1.0})
"""Largest difference between two computations of the same outputs in 32 bits: the limits of the export's parity gate.

Values: relative to the largest magnitude of the output if that is above 1. Classes: the fraction that may differ, for
elements with two almost equally likely classes. Pixels: one level, since rounding may go either way.
"""
FLOAT16_TOLERANCE: Mapping[ElementKind, float] = MappingProxyType({"value": 2e-2, "class": 1e-2, "pixel": 4.0})
"""The same if weights or products are rounded to 16 bits; for pixels, the limit of the pixel that changes most."""
PROCESSOR_FACTOR = 4.0
"""Another processor may show this many times the published deviation, since it only adds in a different order."""

BatchDeviation = Mapping[str, float]
"""For each output by its name, the largest difference measured, in the unit of its kind."""


def output_difference(spec: TensorSpec, expected: Array, actual: Array) -> float:
    """Return the difference between two outputs of the same shape, measured by their kind; NaN if either has a NaN.

    Values: the largest difference, relative to the output's magnitude if that is above 1. Classes: the fraction that
    differs. Pixels: the largest difference.
    """
    if spec.kind == "class":
        return float((expected != actual).mean())
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    scale = max(1.0, float(np.abs(left).max())) if spec.kind == "value" else 1.0
    differs = left != right  # Equal infinities would give inf - inf = NaN; they do not differ.
    return float(np.abs(left[differs] - right[differs]).max(initial=0.0)) / scale


def batch_deviation(specs: Sequence[TensorSpec], pairs: Iterable[tuple[Arrays, Arrays]]) -> dict[str, float]:
    """Return the largest difference of each output over pairs of outputs: of the same samples unbatched and batched.

    0 if there are no pairs. A NaN is kept, so that it exceeds every limit.
    """
    largest = dict.fromkeys((spec.name for spec in specs), 0.0)
    for unbatched, batched in pairs:
        for spec in specs:
            difference = output_difference(spec, unbatched[spec.name], batched[spec.name])
            largest[spec.name] = difference if np.isnan(difference) else max(largest[spec.name], difference)
    return largest


def deviation_in_batches(
    specs: Sequence[TensorSpec], unbatched: Sequence[Arrays], batches: Iterable[Arrays]
) -> dict[str, float]:
    """Return the deviation between samples run one by one and in batches.

    Each batch holds the first of those samples, in order. Every array has the batch axis first, also those of a single
    sample, (1, ...).
    """
    pairs = (
        (sample, {name: array[i : i + 1] for name, array in batch.items()})
        for batch in batches
        for i, sample in enumerate(unbatched[: count_samples(batch)])
    )
    return batch_deviation(specs, pairs)


def max_deviation(spec: TensorSpec, published: BatchDeviation | None, device: str) -> float:
    """Return how far an output may change with the batch on this device ('cpu', 'cuda').

    The published deviation times `PROCESSOR_FACTOR`, and at least the tolerance of the parity gate. A GPU multiplies in
    TF32, whose mantissa is as short as that of 16 bits.
    """
    tolerance = FLOAT32_TOLERANCE if device == "cpu" else FLOAT16_TOLERANCE
    return max(tolerance[spec.kind], PROCESSOR_FACTOR * (published or {}).get(spec.name, 0.0))


def describe_difference(spec: TensorSpec, difference: float) -> str:
    """Describe a difference for a card or a message: `mask in 0.012% of its elements`."""
    if spec.kind == "class":
        return f"{spec.name} in {difference:.3%} of its elements"
    return (
        f"{spec.name} by {difference:.0f} levels of 255" if spec.kind == "pixel" else f"{spec.name} by {difference:.1e}"
    )
