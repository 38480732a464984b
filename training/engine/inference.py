"""Run a network over a set of samples and collect its outputs."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from training.engine.batches import SampleSet, make_loader
from training.engine.runtime import Batch, Runtime


def iterate_outputs(
    network: nn.Module,
    input_names: Sequence[str],
    samples: SampleSet,
    runtime: Runtime,
    *,
    batch_size: int,
    workers: int = 0,
) -> Iterator[tuple[Batch, tuple[Tensor, ...]]]:
    """Yield each batch of this process's samples, in order, with the network's outputs; on the device.

    The network runs in float32 whatever the precision of training is: what is published runs in float32 too, and
    bfloat16 may score the same weights several points lower, or another epoch best.
    Sums over the batches are summed over all processes by `runtime.all_reduce_sum`.
    """
    network.eval()
    keys = samples.sequential_keys(batch_size, rank=runtime.rank, world_size=runtime.world_size)
    with torch.no_grad():
        for cpu_batch in make_loader(samples, keys, runtime, workers=workers):
            batch = runtime.to_device(cpu_batch)
            yield batch, network(*(batch[name] for name in input_names))


def collect_outputs(
    network: nn.Module,
    input_names: Sequence[str],
    samples: SampleSet,
    runtime: Runtime,
    *,
    batch_size: int,
    workers: int = 0,
) -> Tensor:
    """Return the network's first output for all samples, float32 (n, …) on the CPU, in every process.

    Raises ValueError if there are no samples.
    """
    if not len(samples):
        raise ValueError("There are no samples to predict.")
    collected: Tensor | None = None
    batches = iterate_outputs(network, input_names, samples, runtime, batch_size=batch_size, workers=workers)
    for batch, outputs in batches:
        output = outputs[0].float()
        if collected is None:
            collected = torch.zeros(len(samples), *output.shape[1:], device=runtime.device)
        collected[batch["index"]] = output
    if collected is None:  # There are fewer samples than processes, and the others wait for this one's part of the sum.
        shape = _output_shape(network, input_names, samples, runtime)
        collected = torch.zeros(len(samples), *shape, device=runtime.device)
    return runtime.all_reduce_sum(collected).cpu()


def _output_shape(
    network: nn.Module, input_names: Sequence[str], samples: SampleSet, runtime: Runtime
) -> tuple[int, ...]:
    """Return the shape of a sample's first output."""
    batch = runtime.to_device(samples.__getitems__([(0, 0)]))
    with torch.no_grad():
        outputs = network(*(batch[name] for name in input_names))
    return tuple(outputs[0].shape[1:])
