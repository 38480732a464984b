"""Batches in an order that follows from the seed alone; knows nothing of what a sample is."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from training.engine.runtime import Batch, Runtime

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

    def batch_keys(self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[Key]]:
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


def endless(samples: SampleSet, runtime: Runtime, *, batch_size: int, seed: int, workers: int) -> Iterator[Batch]:
    """Batches on the device without end, an epoch after the other."""
    epoch = 0
    while True:
        keys = samples.batch_keys(batch_size, seed=seed, epoch=epoch, rank=runtime.rank, world=runtime.world)
        for batch in loader(samples, keys, runtime, workers=workers):
            yield runtime.move(batch)
        epoch += 1
