import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.training.conftest import ROOT
from tests.training.toy_learner import CPU, SmallLearner
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.engine import checkpoint
from training.engine.batches import infinite_batches
from training.engine.loop import fit
from training.engine.lr_finder import find_rate
from training.engine.optim import make_optimizer
from training.engine.runtime import Runtime, start_runtime, with_sync_batchnorm

SETTINGS = Settings(epochs=3, batch_size=24, device="cpu", threads=1, precision="fp32")
PROGRAM = """
import sys, torch
from pathlib import Path
from tests.training.toy_learner import Points, SmallLearner
from tests.training.engine.test_runtime import SETTINGS, sweep
from training.engine.loop import fit
from training.engine.runtime import end_process, start_runtime
with start_runtime(SETTINGS) as runtime:
    torch.manual_seed(0)
    learner = SmallLearner()
    rows = list(fit(learner, learner.network(), SETTINGS, runtime, Path(sys.argv[1])))
    assert runtime.world_size == 2
    learner.held_out = Points(1, 5)
    assert learner.scores(learner.network(), runtime)["score"] in (0, 1), "one of the processes has no sample"
    for text in ("process 0", "", "a long way to Zürich/" * 300):
        assert runtime.broadcast(text if runtime.is_main else "another") == text
    search = sweep(learner, runtime)
    assert runtime.broadcast(repr(search)) == repr(search), "each process would train with another rate"
    assert len(search.rates) < 20, "the sweep did not stop where the loss of one process exploded"
    print(f"rank {runtime.rank} score {rows[-1].scores['score']:.6f}", flush=True)
end_process(0)
"""


def sweep(learner, runtime):
    """Search a learning rate with a loss that explodes in the second process only."""
    network = learner.network()
    optimizer = make_optimizer(learner.param_groups(network, learner.stages()[-1]), 0.01, 0.0)
    start = learner.steps

    def loss(wrapped, batch):
        value = learner.loss(wrapped, batch)
        return value * 1000 if runtime.rank and learner.steps > start + 8 else value

    batches = infinite_batches(learner.samples, runtime, batch_size=24, seed=0, workers=0)
    return find_rate(runtime.wrap_distributed(network), loss, optimizer, batches, runtime)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one_with_the_same_global_batch(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    torch.manual_seed(0)
    learner = SmallLearner()
    alone = list(fit(learner, learner.network(), SETTINGS, CPU, tmp_path / "one"))

    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        program,
        tmp_path / "two",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: PLW1510 -- its output is part of the assertion.
        [str(word) for word in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )

    assert done.returncode == 0, done.stderr
    states = [checkpoint.load(tmp_path / name / checkpoint.LAST) for name in ("one", "two")]
    for name, expected in states[0]["network"].items():
        assert torch.allclose(expected, states[1]["network"][name], atol=1e-5), name
    losses = [[row["loss"] for row in state["history"]] for state in states]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    for rank in (0, 1):
        assert f"rank {rank} score {alone[-1].scores['score']:.6f}" in done.stdout


def normed_networks():
    return {
        "images": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))),
        "rows": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        "texts": nn.ModuleList([nn.LSTM(3, 4), nn.BatchNorm1d(4)]),
        "a norm alone": nn.BatchNorm1d(4),
        "no norm": nn.Linear(3, 4),
    }


@pytest.mark.parametrize("name", list(normed_networks()))
def test_a_network_keeps_its_batchnorm_and_shares_its_tensors_with_the_one_that_is_trained(name):
    network = normed_networks()[name]
    types = [type(module) for module in network.modules()]
    optimizer = torch.optim.SGD(network.parameters(), lr=1)

    first = with_sync_batchnorm(network)
    second = with_sync_batchnorm(network)  # As in the next stage of training.

    assert [type(module) for module in network.modules()] == types
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in first.modules())
    norms = sum(isinstance(module, nn.SyncBatchNorm) for module in second.modules())
    assert norms == sum(issubclass(kind, nn.BatchNorm1d | nn.BatchNorm2d) for kind in types)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    for converted in (first, second):
        assert [id(parameter) for parameter in converted.parameters()] == held
        assert [id(buffer) for buffer in converted.buffers()] == [id(buffer) for buffer in network.buffers()]
        assert list(converted.state_dict()) == list(network.state_dict())


def test_what_is_learnt_with_sync_batchnorm_is_in_the_network_itself():
    network = normed_networks()["rows"]
    trained = with_sync_batchnorm(network).train()
    rows = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))

    trained(rows).sum().backward()  # Without other processes, SyncBatchNorm runs on a CPU too.
    torch.optim.SGD(network.parameters(), lr=0.1).step()

    assert network[1].num_batches_tracked == 1
    assert torch.equal(trained.eval()(rows), network.eval()(rows))
    assert network[1].bias.abs().min() > 0


def test_requesting_a_missing_device_is_an_error():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(CannotTrain, match="finds no CUDA device"), start_runtime(Settings(device="cuda")):
        pass


def test_a_batch_size_not_divisible_by_the_processes_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")

    with (
        pytest.raises(CannotTrain, match="--batch-size 32 cannot be divided evenly among 3"),
        start_runtime(Settings()),
    ):
        pass


def test_the_precision_comes_with_the_reason_for_it():
    with (
        start_runtime(Settings(device="cpu", precision="bf16")) as requested,
        start_runtime(Settings(device="cpu")) as automatic,
    ):
        pass

    assert (requested.precision, requested.reason) == ("bf16", "as requested")
    assert "bfloat16" in automatic.reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_small_network_trains_on_a_gpu_in_bfloat16(tmp_path):
    runtime = Runtime(torch.device("cuda", 0), "bf16")
    learner = SmallLearner()

    rows = list(fit(learner, learner.network(), SETTINGS, runtime, tmp_path))

    assert rows[-1].scores["score"] > 0.8
