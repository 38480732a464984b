"""Batches in an order that depends on the seed alone; independent of what a sample is."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from training.core.errors import CannotTrain
from training.engine.runtime import Batch, Runtime

Key = tuple[int, int]
"""(epoch, index) of a sample: augmentation is a function of the seed and the key, in whichever process it runs."""


class SampleSet(Dataset[Batch]):
    """A data set that is read a batch at a time.

    Attributes:
        seed: the seed of all randomness within samples, such as augmentation.
    """

    seed: int = 0

    def for_seed(self, seed: int) -> Self:
        """Return the same samples with the randomness of another seed; what is kept in memory is shared."""
        samples = copy.copy(self)
        samples.seed = seed
        return samples

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Return the batch of these samples: the task's inputs by name, `target`, and `index` (all with n rows)."""
        raise NotImplementedError

    def steps(self, batch_size: int) -> int:
        """Return the number of batches in an epoch."""
        return steps_per_epoch(len(self), batch_size)

    def batch_keys(
        self, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
    ) -> list[list[Key]]:
        """Return this process's keys of each batch of an epoch.

        In random order, unless a subclass has an order of its own.
        """
        return shuffled_keys(len(self), batch_size, seed=seed, epoch=epoch, rank=rank, world_size=world_size)

    def sequential_keys(self, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[list[Key]]:
        """Return this process's keys of each batch of all samples, in order.

        Each sample goes to one process; with fewer samples than processes, some have no batch.
        """
        return sequential_keys(len(self), batch_size, rank=rank, world_size=world_size)


def derived_seed(*parts: int) -> int:
    """Return a seed of 63 bits that is a function of these integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def random_indices(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` different indices below `count`, in an order that is random but always the same."""
    indices: list[int] = np.random.default_rng(0).permutation(count)[:wanted].tolist()
    return indices


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of full batches, at least 1: fewer samples than a batch make one smaller batch."""
    return max(1, count // batch_size)


def global_batch_size(count: int, batch_size: int, world_size: int) -> int:
    """Return the size of the batches that all processes share: fewer than requested if there are fewer samples.

    Raises CannotTrain if there are fewer samples than processes.
    """
    if count < world_size:
        raise CannotTrain(
            f"There are {count} training samples for {world_size} processes. Start at most as many processes as there "
            "are samples."
        )
    return min(batch_size, count // world_size * world_size)


def shuffled_keys(
    count: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[list[Key]]:
    """Return this process's keys of each batch of the epoch, in random order.

    The global batches are the same for every `world_size`; samples that do not fill a batch are left out this epoch.
    Raises CannotTrain if there are fewer samples than processes.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch))
    order = torch.randperm(count, generator=generator).tolist()
    size = global_batch_size(count, batch_size, world_size)
    batches = [order[i * size : (i + 1) * size] for i in range(steps_per_epoch(count, batch_size))]
    return [[(epoch, index) for index in batch[rank::world_size]] for batch in batches]


def sequential_keys(count: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[list[Key]]:
    """Return the keys of all samples in order; each sample goes to one process."""
    indices = list(range(rank, count, world_size))
    return [[(0, index) for index in indices[i : i + batch_size]] for i in range(0, len(indices), batch_size)]


def make_loader(samples: SampleSet, keys: Sequence[list[Key]], runtime: Runtime, *, workers: int) -> DataLoader[Batch]:
    """Return a loader of batches on the CPU, prepared by `workers` processes (0: by this one)."""
    workers = min(workers, len(keys))
    return DataLoader(
        samples,
        batch_sampler=keys,
        collate_fn=_identity,
        num_workers=workers,
        pin_memory=runtime.device.type == "cuda",
        multiprocessing_context="fork" if workers else None,  # Decoded images are shared, not copied.
    )


def _identity(batch: Any) -> Any:
    return batch


def infinite_batches(
    samples: SampleSet, runtime: Runtime, *, batch_size: int, seed: int, workers: int
) -> Iterator[Batch]:
    """Yield batches on the device without end, epoch after epoch."""
    samples, epoch = samples.for_seed(seed), 0
    while True:
        keys = samples.batch_keys(batch_size, seed=seed, epoch=epoch, rank=runtime.rank, world_size=runtime.world_size)
        for batch in make_loader(samples, keys, runtime, workers=workers):
            yield runtime.to_device(batch)
        epoch += 1
