"""Which graph of a version to run: that in 32 bits, or a variant of lower precision."""

from dataclasses import dataclass
from typing import Literal

from tasks.manifest import Manifest, Variant

Precision = Literal["auto", "fp32", "fp16", "int8"]
MIN_SPEEDUP = 1.1
"""A variant is chosen automatically if it has been measured to be faster by this factor; less is not worth a loss."""


@dataclass(frozen=True)
class PrecisionPolicy:
    """Chooses among the graphs of a version.

    Attributes:
        precision: 'auto' chooses what is fastest on the device; another value is what to run where it is published.
        max_loss: largest loss of a variant that may run, in points (`PrecisionLoss.points`).
        device: what models run on.
        has_int8_dot_product: whether the CPU multiplies 8-bit integers faster than numbers in 32 bits.
    """

    precision: Precision = "auto"
    max_loss: float = 0.5
    device: Literal["cpu", "cuda"] = "cpu"
    has_int8_dot_product: bool = False

    def variants_of(self, manifest: Manifest) -> tuple[Variant, ...]:
        """Return the variants to run in place of the graph in 32 bits, most wanted first; often none."""
        suitable = (variant for variant in manifest.variants if variant.loss.points <= self.max_loss)
        return tuple(variant for variant in suitable if self._is_wanted(variant))

    def _is_wanted(self, variant: Variant) -> bool:
        if self.precision != "auto":
            return variant.precision == self.precision
        speedup = variant.slowest_speedup(self.device)
        if self.device == "cuda":
            # Tensor cores multiply in 16 bits at twice the rate or more; it need not have been measured to be tried.
            return variant.precision == "fp16" and (speedup is None or speedup >= MIN_SPEEDUP)
        is_fast = speedup is not None and speedup >= MIN_SPEEDUP
        return variant.precision == "int8" and self.has_int8_dot_product and is_fast


def precision_name(variant: Variant | None) -> Literal["fp32", "fp16", "int8"]:
    """Return the precision that a graph computes in: 'fp32', 'fp16' or 'int8'."""
    return "fp32" if variant is None else variant.precision
