import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.splits import validation_split
from training.engine.batches import SampleSet, derived_seed, in_order, loader, shuffled
from training.engine.inference import predicted
from training.engine.runtime import Runtime

CPU = Runtime(torch.device("cpu"))


def flat(batches):
    return [key for batch in batches for key in batch]


class Counted(SampleSet):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitems__(self, keys):
        index = torch.tensor([i for _, i in keys])
        noise = [np.random.default_rng(derived_seed(7, *key)).normal() for key in keys]
        return {"x": index.float().unsqueeze(1), "noise": torch.tensor(noise), "index": index}


@given(st.integers(1, 200), st.integers(1, 8), st.sampled_from([1, 2, 4]), st.integers(0, 5), st.integers(0, 5))
def test_processes_deal_out_the_very_batches_one_process_would_take(count, share, world, seed, epoch):
    size = share * world
    if count < size:
        return
    alone = shuffled(count, size, seed=seed, epoch=epoch)

    parts = [shuffled(count, size, seed=seed, epoch=epoch, rank=r, world=world) for r in range(world)]

    assert [sorted(batch) for batch in alone] == [sorted(flat(each)) for each in zip(*parts, strict=True)]


@given(st.integers(2, 100), st.integers(1, 32), st.integers(0, 3))
def test_an_epoch_takes_no_sample_twice_and_another_epoch_another_order(count, size, seed):
    first = flat(shuffled(count, size, seed=seed, epoch=0))

    assert len({index for _, index in first}) == len(first) >= min(count, size)
    assert first == flat(shuffled(count, size, seed=seed, epoch=0))
    if count > 20:
        other = flat(shuffled(count, size, seed=seed, epoch=1))
        assert [index for _, index in other] != [index for _, index in first]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 3))
def test_validation_visits_every_sample_once(count, size, world):
    visited = [key for rank in range(world) for batch in in_order(count, size, rank=rank, world=world) for key in batch]

    assert sorted(visited) == [(0, index) for index in range(count)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=80), st.floats(0.05, 0.5))
def test_a_split_keeps_copies_together_and_every_label_on_both_sides(pairs, share):
    groups, labels = [f"g{group}" for group, _ in pairs], [label for _, label in pairs]

    held = validation_split(groups, labels, share)

    sides = {}
    for group, side in zip(groups, held, strict=True):
        assert sides.setdefault(group, side) == side
    own = {label: {g for g, other in zip(groups, labels, strict=True) if other == label} for label in set(labels)}
    alone = {label: mine - set().union(*(own[o] for o in own if o != label)) for label, mine in own.items()}
    for label, mine in own.items():
        if len(mine) > 1 and alone[label] == mine:
            assert {sides[group] for group in mine} == {True, False}


def test_a_split_does_not_depend_on_the_order_of_the_samples():
    groups, labels = [f"g{i}" for i in range(50)], [i % 3 for i in range(50)]

    held = validation_split(groups, labels, 0.2)
    turned = validation_split(groups[::-1], labels[::-1], 0.2)

    assert held == turned[::-1]
    assert 8 <= sum(held) <= 12


def test_batches_do_not_depend_on_how_many_workers_prepare_them():
    keys = shuffled(40, 8, seed=1, epoch=2)

    alone = list(loader(Counted(40), keys, CPU, workers=0))
    helped = list(loader(Counted(40), keys, CPU, workers=2))

    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_predictions_come_in_the_order_of_the_samples():
    class Doubled(torch.nn.Module):
        def forward(self, x):
            return (2 * x,)

    found = predicted(Doubled(), ["x"], Counted(23), CPU, batch_size=5)

    assert found.squeeze(1).tolist() == [2 * i for i in range(23)]


def test_a_seed_follows_from_all_of_its_parts():
    seeds = {derived_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}

    assert len(seeds) == 125
    assert derived_seed(1, 2) == derived_seed(1, 2)
