from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.core.errors import CannotTrain
from training.data.hash_split import validation_split
from training.engine.batches import SampleSet, derived_seed, make_loader, sequential_keys, shuffled_keys
from training.engine.inference import collect_outputs
from training.engine.runtime import Runtime

CPU = Runtime(torch.device("cpu"))


def flatten(batches):
    return [key for batch in batches for key in batch]


class IndexSamples(SampleSet):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitems__(self, keys):
        index = torch.tensor([i for _, i in keys])
        noise = [np.random.default_rng(derived_seed(7, *key)).normal() for key in keys]
        return {"x": index.float().unsqueeze(1), "noise": torch.tensor(noise), "index": index}


class ReturnsTuple(torch.nn.Module):
    def forward(self, x):
        return (x,)


@given(st.integers(1, 200), st.integers(1, 8), st.sampled_from([1, 2, 4]), st.integers(0, 5), st.integers(0, 5))
def test_processes_divide_the_same_batches_as_one_process(count, per_process, world_size, seed, epoch):
    size = per_process * world_size
    if count < size:
        return
    alone = shuffled_keys(count, size, seed=seed, epoch=epoch)

    parts = [
        shuffled_keys(count, size, seed=seed, epoch=epoch, rank=r, world_size=world_size) for r in range(world_size)
    ]

    assert [sorted(batch) for batch in alone] == [sorted(flatten(batches)) for batches in zip(*parts, strict=True)]


@given(st.integers(2, 100), st.integers(1, 32), st.integers(0, 3))
def test_an_epoch_uses_no_sample_twice_and_each_epoch_has_its_own_order(count, size, seed):
    first = flatten(shuffled_keys(count, size, seed=seed, epoch=0))

    assert len({index for _, index in first}) == len(first) >= min(count, size)
    assert first == flatten(shuffled_keys(count, size, seed=seed, epoch=0))
    if count > 20:
        other = flatten(shuffled_keys(count, size, seed=seed, epoch=1))
        assert [index for _, index in other] != [index for _, index in first]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3))
def test_sequential_keys_visit_every_sample_once(count, size, world_size):
    visited = [
        key
        for rank in range(world_size)
        for batch in sequential_keys(count, size, rank=rank, world_size=world_size)
        for key in batch
    ]

    assert sorted(visited) == [(0, index) for index in range(count)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=80), st.floats(0.05, 0.5))
def test_a_split_keeps_copies_together_and_every_label_on_both_sides(pairs, fraction):
    groups, labels = [f"g{group}" for group, _ in pairs], [label for _, label in pairs]

    held_out = validation_split(groups, labels, fraction)

    sides = {}
    for group, side in zip(groups, held_out, strict=True):
        assert sides.setdefault(group, side) == side
    groups_of = {label: {g for g, other in zip(groups, labels, strict=True) if other == label} for label in set(labels)}
    for label, label_groups in groups_of.items():
        shared = set().union(*(groups_of[other] for other in groups_of if other != label))
        if len(label_groups) > 1 and not label_groups & shared:
            assert {sides[group] for group in label_groups} == {True, False}


def test_a_split_does_not_depend_on_the_order_of_the_samples():
    groups, labels = [f"g{i}" for i in range(50)], [i % 3 for i in range(50)]

    held_out = validation_split(groups, labels, 0.2)
    reversed_order = validation_split(groups[::-1], labels[::-1], 0.2)

    assert held_out == reversed_order[::-1]
    assert 8 <= sum(held_out) <= 12


def test_batches_do_not_depend_on_how_many_workers_prepare_them():
    keys = shuffled_keys(40, 8, seed=1, epoch=2)

    without_workers = list(make_loader(IndexSamples(40), keys, CPU, workers=0))
    with_workers = list(make_loader(IndexSamples(40), keys, CPU, workers=2))

    for expected, batch in zip(without_workers, with_workers, strict=True):
        assert all(torch.equal(expected[name], batch[name]) for name in expected)


class NoisySamples(IndexSamples):
    def __init__(self, count):
        super().__init__(count)
        self.memory = object()

    def __getitems__(self, keys):
        noise = [np.random.default_rng(derived_seed(self.seed, *key)).normal() for key in keys]
        return super().__getitems__(keys) | {"noise": torch.tensor(noise)}


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_for_another_seed_draw_otherwise_and_share_what_is_in_memory(workers):
    samples = NoisySamples(40)
    keys = shuffled_keys(40, 8, seed=1, epoch=2)

    first, second, again = (
        [batch["noise"] for batch in make_loader(samples.for_seed(seed), keys, CPU, workers=workers)]
        for seed in (0, 1, 0)
    )

    assert all(map(torch.equal, first, again))
    assert not any((a == b).any() for a, b in zip(first, second, strict=True))
    assert samples.for_seed(1).memory is samples.memory


def test_outputs_are_collected_in_the_order_of_the_samples():
    class Double(torch.nn.Module):
        def forward(self, x):
            return (2 * x,)

    outputs = collect_outputs(Double(), ["x"], IndexSamples(23), CPU, batch_size=5)

    assert outputs.squeeze(1).tolist() == [2 * i for i in range(23)]


@dataclass(frozen=True)
class SummingRuntime(Runtime):
    """One of several processes, without the others: keeps its parts of the sums."""

    parts: list[torch.Tensor] = field(default_factory=list)

    def all_reduce_sum(self, tensor):
        self.parts.append(tensor)
        return tensor


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_every_process_takes_its_part_in_validation_however_few_samples_there_are(count):
    network = torch.nn.Sequential(torch.nn.Linear(1, 3), ReturnsTuple())
    runtimes = [SummingRuntime(torch.device("cpu"), rank=rank, world_size=4) for rank in range(4)]

    for runtime in runtimes:
        collect_outputs(network, ["x"], IndexSamples(count), runtime, batch_size=2)

    (parts,) = zip(*(runtime.parts for runtime in runtimes), strict=True)
    assert torch.equal(sum(parts), collect_outputs(network, ["x"], IndexSamples(count), CPU, batch_size=2))


def test_training_with_more_processes_than_samples_is_an_error():
    with pytest.raises(CannotTrain, match="3 training samples for 4 processes"):
        shuffled_keys(3, 8, seed=0, epoch=0, rank=3, world_size=4)


def test_outputs_are_those_of_float32_when_training_runs_in_bfloat16():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), ReturnsTuple())

    outputs = [
        collect_outputs(network, ["x"], IndexSamples(9), Runtime(torch.device("cpu"), precision), batch_size=4)
        for precision in ("fp32", "bf16")
    ]

    assert torch.equal(*outputs)


def test_a_derived_seed_depends_on_all_of_its_parts():
    seeds = {derived_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}

    assert len(seeds) == 125
    assert derived_seed(1, 2) == derived_seed(1, 2)
