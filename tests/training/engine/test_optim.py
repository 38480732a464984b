import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.training.toy_learner import CPU
from training.engine.lr_finder import find_rate
from training.engine.optim import ParamGroup, make_optimizer, one_cycle_schedule
from training.engine.runtime import Runtime


def toy_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def batches():
    generator = torch.Generator().manual_seed(0)
    while True:
        x = torch.randn(16, 4, generator=generator)
        yield {"x": x, "target": (x.sum(dim=1) > 0).long()}


def loss(network, batch):
    return nn.functional.cross_entropy(network(batch["x"]), batch["target"])


@given(st.integers(4, 300))
def test_the_rate_rises_to_its_peak_and_falls_to_near_zero_while_momentum_does_the_opposite(steps):
    optimizer = make_optimizer([ParamGroup(tuple(toy_network().parameters()))], 0.01, 0.1)
    schedule = one_cycle_schedule(optimizer, steps)
    rates, momenta = [], []

    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        schedule.step() if len(rates) < steps else None

    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] == pytest.approx(0.01 / 25)
    assert rates[-1] < 1e-6
    assert abs(momenta.index(min(momenta)) - peak) <= 1
    assert min(momenta) >= 0.85 - 1e-9
    assert max(momenta) <= 0.95 + 1e-9


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_schedule_of_a_few_steps_works(steps):
    optimizer = make_optimizer([ParamGroup(tuple(toy_network().parameters()))], 0.01, 0.1)
    schedule = one_cycle_schedule(optimizer, steps)

    for _ in range(steps):
        assert 0 < optimizer.param_groups[0]["lr"] <= 0.01
        optimizer.step()
        schedule.step()


def test_slower_groups_stay_slower_by_the_same_factor():
    network = toy_network()
    groups = [ParamGroup(tuple(network[3].parameters())), ParamGroup(tuple(network[0].parameters()), 0.125)]
    optimizer = make_optimizer(groups, 0.01, 0.1)
    schedule = one_cycle_schedule(optimizer, 20)

    for _ in range(19):
        rates = sorted({group["lr"] for group in optimizer.param_groups})
        assert rates[0] == pytest.approx(rates[-1] / 8, rel=1e-6)
        optimizer.step()
        schedule.step()


def test_norms_and_biases_have_no_weight_decay_and_weights_do():
    network = toy_network()
    optimizer = make_optimizer([ParamGroup(tuple(network.parameters()))], 0.01, 0.1)

    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}

    assert {name: decays[id(p)] for name, p in network.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "3.weight": 0.1,
        "3.bias": 0.0,
    }


def test_frozen_parameters_are_not_given_to_the_optimiser():
    network = toy_network()
    network[0].weight.requires_grad = False

    optimizer = make_optimizer([ParamGroup(tuple(network.parameters()))], 0.01, 0.1)

    assert all(p.requires_grad for group in optimizer.param_groups for p in group["params"])


def test_the_rate_search_restores_network_and_optimiser():
    network = toy_network()
    optimizer = make_optimizer([ParamGroup(tuple(network.parameters()))], 0.01, 0.1)
    loss(network, next(batches())).backward()
    optimizer.step()
    before = copy.deepcopy((network.state_dict(), optimizer.state_dict()))

    search = find_rate(network, loss, optimizer, batches(), CPU, steps=60)

    after = network.state_dict()
    assert all(torch.equal(before[0][name], after[name]) for name in after)
    for key, state in before[1]["state"].items():
        assert all(torch.equal(state[name], optimizer.state_dict()["state"][key][name]) for name in state)
    assert before[1]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert search.rates[0] == pytest.approx(1e-6)
    assert 1e-6 < search.suggestion < 1.0


def test_the_suggested_rate_is_where_the_loss_falls_not_where_it_diverges():
    network = toy_network()
    optimizer = make_optimizer([ParamGroup(tuple(network.parameters()))], 0.01, 0.1)

    search = find_rate(network, loss, optimizer, batches(), CPU, high=100.0, steps=120)

    best = search.rates[search.losses.index(min(search.losses))]
    assert search.suggestion <= best
    assert max(search.losses) <= 4 * min(search.losses) + 1e-6


def test_the_rate_search_trains_in_the_precision_of_training():
    dtypes = set()

    def record(network, batch):
        output = network(batch["x"])
        dtypes.add(output.dtype)
        return output.float().square().mean()

    for precision in ("fp32", "bf16"):
        network = toy_network()
        optimizer = make_optimizer([ParamGroup(tuple(network.parameters()))], 0.01, 0.1)
        find_rate(network, record, optimizer, batches(), Runtime(torch.device("cpu"), precision), steps=3)

    assert dtypes == {torch.float32, torch.bfloat16}


def test_the_rate_search_clips_gradients_like_training():
    norms = []
    for clip in (0.0, 0.5):
        network = toy_network()
        optimizer = make_optimizer([ParamGroup(tuple(network.parameters()))], 0.01, 0.1)
        find_rate(network, lambda n, b: 1e6 * loss(n, b), optimizer, batches(), CPU, clip=clip, steps=1)
        norms.append(float(torch.stack([p.grad.norm() for p in network.parameters()]).norm()))

    assert norms[0] > 100
    assert norms[1] == pytest.approx(0.5, rel=1e-3)
