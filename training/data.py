"""Batches in an order that follows from the seed alone; knows nothing of what a sample is."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from training.runtime import Batch, Runtime

Key = tuple[int, int]
"""(epoch, index) of a sample: augmentation is a function of the seed and of these, whoever prepares the batch."""


class SampleSet(Dataset[Batch]):
    """Samples that are fetched a batch at a time."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these samples: each input of the task by name, `target`, and `index` (all with n rows)."""
        raise NotImplementedError

    def steps(self, batch_size: int) -> int:
        """How many batches an epoch has."""
        return steps_an_epoch(len(self), batch_size)

    def dealt(self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[Key]]:
        """The keys of each batch of an epoch, as far as they are dealt to this process.

        They are drawn at random, unless the samples have an order of their own.
        """
        return shuffled(len(self), batch_size, seed=seed, epoch=epoch, rank=rank, world=world)


def derived_seed(*parts: int) -> int:
    """A seed that follows from these whole numbers and no others, evenly spread over 63 bits."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def steps_an_epoch(count: int, batch_size: int) -> int:
    """How many whole batches there are; a set smaller than a batch is one."""
    return max(1, count // batch_size)


def shuffled(count: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[Key]]:
    """The keys of each batch of the epoch, as far as they are dealt to this process.

    The global batches are the same for every `world`; what does not fill a batch is left out this time.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
    order = torch.randperm(count, generator=generator).tolist()
    size = min(batch_size, count // world * world)
    batches = [order[i * size : (i + 1) * size] for i in range(steps_an_epoch(count, batch_size))]
    return [[(epoch, index) for index in batch[rank::world]] for batch in batches]


def in_order(count: int, batch_size: int, *, rank: int = 0, world: int = 1) -> list[list[Key]]:
    """The keys of all samples in their order, each dealt to one process."""
    mine = list(range(rank, count, world))
    return [[(0, index) for index in mine[i : i + batch_size]] for i in range(0, len(mine), batch_size)]


def loader(samples: SampleSet, keys: Sequence[list[Key]], runtime: Runtime, *, workers: int) -> DataLoader[Batch]:
    """Batches on the CPU, prepared by `workers` processes (0: by this one)."""
    workers = min(workers, len(keys))
    return DataLoader(
        samples,
        batch_sampler=keys,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=runtime.device.type == "cuda",
        multiprocessing_context="fork" if workers else None,  # The decoded pictures are shared, not copied.
    )


def _as_it_is(batch: Any) -> Any:
    return batch


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
    return runtime.total(found).cpu()


def held_out(groups: Sequence[str], labels: Sequence[int], share: float) -> list[bool]:
    """Which samples are for validation: about `share` of each label, the same ones in every run and on any machine.

    A sample's place follows from the hash of its group alone, so samples of one group (the copies of a picture) stay
    on one side, and adding data moves no old group from one side to the other by much. Every label keeps at least one
    group on each side where it has two.
    """
    chosen: set[str] = set()
    seen: set[str] = set()
    for label in sorted(set(labels)):
        mine = {group for group, other in zip(groups, labels, strict=True) if other == label} - seen
        seen |= mine
        ranked = sorted(mine, key=lambda group: hashlib.sha256(group.encode()).digest())
        chosen.update(ranked[: max(1, round(share * len(ranked)))] if len(ranked) > 1 else [])
    return [group in chosen for group in groups]


def endless(samples: SampleSet, runtime: Runtime, *, batch_size: int, seed: int, workers: int) -> Iterator[Batch]:
    """Batches on the device without end, an epoch after the other."""
    epoch = 0
    while True:
        keys = samples.dealt(batch_size, seed=seed, epoch=epoch, rank=runtime.rank, world=runtime.world)
        for batch in loader(samples, keys, runtime, workers=workers):
            yield runtime.move(batch)
        epoch += 1
