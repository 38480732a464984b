import json
import math
import re
import signal
import time

import pytest
import torch

from tests.training.toy_learner import CPU, Points, SmallLearner
from training.__main__ import main
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.engine import checkpoint
from training.engine.batches import derived_seed
from training.engine.loop import fit, train_step
from training.engine.optim import make_optimizer
from training.engine.runtime import Runtime

TABULAR = ("--target", "churn", "--epochs", "4", "--batch-size", "16", "--threads", "1", "--checkpoint-steps", "3")
IMAGES = (
    *("--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--size", "32", "--epochs", "2", "--batch-size", "8"),
    *("--threads", "1", "--precision", "fp32", "--checkpoint-steps", "1", "--mixup", "0.4"),
)


@pytest.fixture
def train(tmp_path, capsys):
    """Run a command line in this process, since starting another takes longer than the training."""

    def run(*arguments):
        paths = ["--runs", tmp_path / "runs", "--models", tmp_path / "models", "--data-dir", tmp_path / "data"]
        status = main([str(word) for word in (*arguments, *paths, "--device", "cpu")])
        assert status == 0, capsys.readouterr().err

    return run


def kill_after(process, runs, epochs):
    """Kill the process in the middle of an epoch, once its checkpoint is from that epoch or a later one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in runs.rglob(checkpoint.LAST):
            progress = checkpoint.load(path)["progress"]
            if progress["epoch"] >= epochs and progress["step"]:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                return path
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("The run did not reach that epoch.")


@pytest.mark.slow
@pytest.mark.parametrize(("task", "options", "epochs"), [("tabular", TABULAR, 1), ("classification", IMAGES, 0)])
def test_a_killed_and_resumed_run_ends_exactly_like_an_uninterrupted_one(
    command, train, photos, table, tmp_path, task, options, epochs
):
    data = table() if task == "tabular" else photos(count=20)
    arguments = (task, "--data", data, *options)
    train(*arguments)
    (tmp_path / "runs").rename(tmp_path / "uninterrupted")
    last = kill_after(command(*arguments), tmp_path / "runs", epochs)

    train(*arguments)

    assert len(list((tmp_path / "runs" / task).iterdir())) == 1, "it resumed in the same folder"
    for name in (checkpoint.LAST, checkpoint.BEST):
        (path,) = (tmp_path / "uninterrupted").rglob(name)
        expected, actual = checkpoint.load(path), checkpoint.load(last.with_name(name))
        assert all(torch.equal(expected["network"][key], actual["network"][key]) for key in expected["network"])
    losses = [
        [
            (row["loss"], row["scores"])
            for row in json.loads(next((tmp_path / folder).rglob("history.json")).read_text())
        ]
        for folder in ("uninterrupted", "runs")
    ]
    assert losses[0] == losses[1]


def test_the_best_weights_are_kept_and_restored(tmp_path):
    learner = SmallLearner()
    settings = Settings(epochs=6, batch_size=16, rate=0.05)
    network = learner.network()

    learner.scores_of_epoch = lambda epoch: {"score": float(-epoch)}
    rows = list(fit(learner, network, settings, CPU, tmp_path))

    best = max(rows, key=lambda row: row.scores["score"])
    saved = checkpoint.load(tmp_path / checkpoint.BEST)
    assert best.epoch == 1
    assert saved["scores"] == best.scores
    assert all(torch.equal(saved["network"][name], value) for name, value in network.state_dict().items())
    assert not torch.equal(
        checkpoint.load(tmp_path / checkpoint.LAST)["network"]["0.weight"], network.state_dict()["0.weight"]
    )


def test_of_epochs_with_equal_scores_the_one_with_the_lowest_loss_is_kept(tmp_path):
    learner = SmallLearner()
    losses = {1: 0.5, 2: 0.3, 3: 0.4, 4: 0.1, 5: 0.5, 6: 0.5}
    learner.scores_of_epoch = lambda epoch: {"score": 0.0 if epoch == 4 else 0.9, "loss": losses[epoch]}

    list(fit(learner, learner.network(), Settings(epochs=3, batch_size=16), CPU, tmp_path))

    assert checkpoint.load(tmp_path / checkpoint.BEST)["scores"] == {"score": 0.9, "loss": 0.3}


def test_a_loss_that_is_not_a_number_is_worse_than_any_other(tmp_path):
    learner = SmallLearner(epochs=2)
    losses = {1: math.nan, 2: 0.5, 3: math.nan}
    learner.scores_of_epoch = lambda epoch: {"score": 0.9, "loss": losses[epoch]}

    list(fit(learner, learner.network(), Settings(batch_size=16), CPU, tmp_path))

    assert checkpoint.load(tmp_path / checkpoint.BEST)["scores"]["loss"] == 0.5


@pytest.mark.parametrize("scores", [[math.nan, 0.2, 0.1], [math.nan, math.nan, math.nan], [0.2, math.nan, 0.1]])
def test_a_score_that_is_not_a_number_is_the_lowest_and_does_not_end_training(tmp_path, scores):
    learner = SmallLearner(epochs=2)
    learner.scores_of_epoch = lambda epoch: {"score": scores[epoch - 1], "loss": 3.0 - epoch}

    rows = list(fit(learner, learner.network(), Settings(batch_size=16), CPU, tmp_path))

    kept = checkpoint.load(tmp_path / checkpoint.BEST)["scores"]
    assert len(rows) == 3
    assert kept["score"] == 0.2 if 0.2 in scores else kept["loss"] == 0.0


def test_a_train_run_is_not_trained_again(tmp_path):
    settings = Settings(epochs=3, batch_size=16)
    first, second = SmallLearner(), SmallLearner()
    network, other = first.network(), second.network()

    rows = list(fit(first, network, settings, CPU, tmp_path))
    again = list(fit(second, other, settings, CPU, tmp_path))

    assert [(row.epoch, row.loss) for row in rows] == [(row.epoch, row.loss) for row in again]
    assert second.steps == 0
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_training_lowers_the_loss_and_the_same_seed_gives_the_same_network(tmp_path):
    settings = Settings(epochs=4, batch_size=16, rate=0.02)
    networks = []
    for name in "ab":
        (tmp_path / name).mkdir()
        learner = SmallLearner()
        torch.manual_seed(0)
        networks.append(learner.network())
        rows = list(fit(learner, networks[-1], settings, CPU, tmp_path / name))

    assert rows[-1].loss < rows[0].loss / 2
    assert torch.equal(networks[0][0].weight, networks[1][0].weight)


class NoisyPoints(Points):
    def __getitems__(self, keys):
        seeds = [derived_seed(self.seed, *key) for key in keys]
        noise = [torch.rand((), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return super().__getitems__(keys) | {"noise": torch.stack(noise)}


class NoisyLearner(SmallLearner):
    """Keeps the noise of each sample in each epoch."""

    def __init__(self):
        super().__init__(epochs=1)
        self.samples, self.noise = NoisyPoints(48, 0), []

    def loss(self, network, batch):
        self.noise += zip(batch["index"].tolist(), batch["noise"].tolist(), strict=True)
        return super().loss(network, batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_seed_draws_other_augmentations_and_the_same_seed_the_same(tmp_path, workers):
    learner, draws = NoisyLearner(), []
    for number, seed in enumerate((0, 1, 0)):
        folder = tmp_path / str(number)
        folder.mkdir()
        settings = Settings(epochs=1, batch_size=16, seed=seed)
        list(fit(learner, learner.network(), settings, CPU, folder, workers=workers))
        draws.append(sorted(learner.noise))
        learner.noise = []

    assert len({noise for _, noise in draws[0]}) == 96, "each of two epochs draws anew"
    assert draws[0] == draws[2]
    assert not {noise for _, noise in draws[0]} & {noise for _, noise in draws[1]}


def test_an_infinite_loss_ends_training_with_advice(tmp_path):
    learner = SmallLearner()
    learner.loss_factor = float("inf")

    with pytest.raises(CannotTrain, match="infinite or NaN in epoch 1; train with a lower --rate"):
        list(fit(learner, learner.network(), Settings(epochs=1, batch_size=16), CPU, tmp_path))


def test_gradients_are_clipped_before_the_step():
    learner = SmallLearner()
    network = learner.network()
    learner.loss_factor = 1e6
    batch = learner.samples.__getitems__([(0, i) for i in range(16)])
    optimizer = make_optimizer(learner.param_groups(network, learner.stages()[1]), 0.01, 0.0)

    train_step(network, learner.loss, batch, optimizer, CPU, clip=0.5)

    norm = torch.stack([p.grad.norm() for p in network.parameters()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3)


def test_bfloat16_reaches_about_the_loss_of_single_precision(tmp_path):
    settings = Settings(epochs=4, batch_size=16, rate=0.02)
    losses = {}
    for precision in ("fp32", "bf16"):
        (tmp_path / precision).mkdir()
        learner = SmallLearner()
        torch.manual_seed(0)
        runtime = Runtime(torch.device("cpu"), precision)
        losses[precision] = list(fit(learner, learner.network(), settings, runtime, tmp_path / precision))[-1].loss

    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.05)


def test_a_checkpoint_is_replaced_atomically_and_a_truncated_one_is_refused(tmp_path):
    path = tmp_path / checkpoint.LAST
    checkpoint.save(path, {"a": torch.ones(2)})
    checkpoint.save(path, {"a": torch.zeros(2)})

    assert checkpoint.load(path)["a"].tolist() == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.LAST]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CannotTrain, match=r"last\.pt cannot be read"):
        checkpoint.load(path)


def test_data_with_other_labels_is_another_run(train, table, tmp_path):
    data = table()
    arguments = ("tabular", "--data", data, *TABULAR)
    train(*arguments)
    swap = {",yes": ",no", ",no": ",yes"}
    data.write_text(re.sub(r",(yes|no)$", lambda match: swap[match[0]], data.read_text(), flags=re.M))

    train(*arguments, "--keep")

    assert len(list((tmp_path / "runs" / "tabular").iterdir())) == 2
