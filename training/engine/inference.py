"""Run a network over a set of samples and collect its outputs."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from training.engine.batches import SampleSet, in_order, loader
from training.engine.runtime import Batch, Runtime


def answered(
    network: nn.Module, names: Sequence[str], samples: SampleSet, runtime: Runtime, *, batch_size: int, workers: int = 0
) -> Iterator[tuple[Batch, tuple[Tensor, ...]]]:
    """Each batch of this process's share of the samples, in order, with the network's outputs; on the device.

    What is summed over them is summed over all processes by `runtime.total`.
    """
    network.eval()
    keys = in_order(len(samples), batch_size, rank=runtime.rank, world=runtime.world)
    with torch.no_grad():
        for batch in loader(samples, keys, runtime, workers=workers):
            moved = runtime.move(batch)
            with runtime.autocast():
                outputs = network(*(moved[name] for name in names))
            yield moved, outputs


def predicted(
    network: nn.Module, names: Sequence[str], samples: SampleSet, runtime: Runtime, *, batch_size: int, workers: int = 0
) -> Tensor:
    """The first output of the network for every sample, float32 (n, …) on the CPU, on every process."""
    found: Tensor | None = None
    for batch, outputs in answered(network, names, samples, runtime, batch_size=batch_size, workers=workers):
        output = outputs[0].float()
        if found is None:
            found = torch.zeros(len(samples), *output.shape[1:], device=runtime.device)
        found[batch["index"]] = output
    if found is None:
        raise ValueError("There are more processes than samples to predict.")
    return runtime.all_reduce_sum(found).cpu()
