"""How far two runs of one graph lie apart, and how far they may: a sample's outputs alone, and in a batch.

Training measures it before it publishes, on samples of its data, and writes the figures into the manifest; the service
measures it again on the goldens, on the device that is to answer. Both do it here.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from tasks.contract import Array, Arrays, ElementKind, TensorSpec

AGREEMENT: Mapping[ElementKind, float] = MappingProxyType({"value": 1e-4, "class": 1e-3, "pixel": 1.0})
"""How far two computations of the same in 32 bits may lie apart: the limits of the export's gate.

Numbers: times the largest magnitude of the output where that is above 1. Indices: the share that may differ, where two
classes are all but equally likely. Levels: rounding falls to one side or the other.
"""
ROUNDING: Mapping[ElementKind, float] = MappingProxyType({"value": 2e-2, "class": 1e-2, "pixel": 4.0})
"""The same where weights or products are rounded to 16 bits; a level is that of the one pixel that changes most."""
OTHER_PROCESSORS = 4.0
"""How many times the published figure another processor may show: it adds in another order, no more."""

BatchDeviation = Mapping[str, float]
"""For each output by its name, the largest difference that was seen, in the unit of its meaning."""


def difference(spec: TensorSpec, expected: Array, got: Array) -> float:
    """How far two outputs of one shape lie apart, by what they mean; NaN where one of them is not a number.

    Numbers: the largest difference, relative to the output's magnitude where that is above 1. Indices: the share that
    differs. Levels: the largest difference.
    """
    if spec.kind == "class":
        return float((expected != got).mean())
    one, other = expected.astype(np.float64), got.astype(np.float64)
    scale = max(1.0, float(np.abs(one).max())) if spec.kind == "value" else 1.0
    apart = one != other  # An infinite number is as far from itself as any other: not at all.
    return float(np.abs(one[apart] - other[apart]).max(initial=0.0)) / scale


def batch_deviation(specs: Sequence[TensorSpec], pairs: Iterable[tuple[Arrays, Arrays]]) -> dict[str, float]:
    """The largest difference of each output over all pairs of outputs, those of the same samples alone and in company.

    0 where there is no pair. A difference that is not a number is kept: it is larger than anything allowed.
    """
    found = dict.fromkeys((spec.name for spec in specs), 0.0)
    for alone, together in pairs:
        for spec in specs:
            apart = difference(spec, alone[spec.name], together[spec.name])
            found[spec.name] = apart if np.isnan(apart) else max(found[spec.name], apart)
    return found


def between_batches(
    specs: Sequence[TensorSpec], alone: Sequence[Arrays], batches: Iterable[Arrays]
) -> dict[str, float]:
    """The drift between samples alone and in batches, each batch of which has the first of those samples, in order.

    Every array has the batch axis first, also those of a sample alone, (1, ...).
    """
    pairs = (
        (one, {name: array[i : i + 1] for name, array in batch.items()})
        for batch in batches
        for i, one in enumerate(alone[: len(next(iter(batch.values())))])
    )
    return batch_deviation(specs, pairs)


def allowed(spec: TensorSpec, published: BatchDeviation | None, device: str) -> float:
    """How far an output may change with the batch on this device ('cpu', 'cuda').

    What was published, times `OTHER_PROCESSORS`; at least what the gate lets through. A GPU multiplies in TF32, whose
    mantissa is as short as that of 16 bits.
    """
    least = AGREEMENT if device == "cpu" else ROUNDING
    return max(least[spec.kind], OTHER_PROCESSORS * (published or {}).get(spec.name, 0.0))


def in_words(spec: TensorSpec, found: float) -> str:
    """A difference as it stands on a card: `mask in 0.012% of its elements`."""
    if spec.kind == "class":
        return f"{spec.name} in {found:.3%} of its elements"
    return f"{spec.name} by {found:.0f} levels of 255" if spec.kind == "pixel" else f"{spec.name} by {found:.1e}"
