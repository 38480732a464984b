"""The parts of a session that the command line does not show."""

import torch
from torch import nn

from tests.training.toy_learner import SmallLearner
from training.core.config import Settings
from training.core.recipe import DataCard, Recipe
from training.engine.learner import Phase, Stage
from training.engine.runtime import Runtime
from training.reporting.run_folder import Plan
from training.session import Session, hash_data


class TwoPhases(SmallLearner):
    """Its network starts from that of the phase before it, as a classifier from a language model."""

    def __init__(self):
        super().__init__()
        self.first: nn.Module | None = None
        self.saved = []

    def phases(self):
        yield Phase("first", SmallLearner(), Settings(batch_size=16), self.keep, self.saved.append)

    def keep(self, network):
        self.first = network

    def network(self):
        network = super().network()
        if self.first is not None:
            network.load_state_dict(self.first.state_dict())
        return network

    def stages(self):
        return (Stage("all", 1, 0.0),)


class OtherProcess(Runtime):
    """A process that is not the main one, whose collective operations return at once."""

    @property
    def is_main(self) -> bool:
        return False


def session_of(learner, runtime) -> Session:
    recipe = Recipe("toy", "toy", "", "", "", None, DataCard("toy", "CC0-1.0"), Settings(), None)
    return Session(Plan(recipe, Settings(batch_size=16), None, ""), learner, runtime)


def test_every_process_continues_from_the_network_of_the_phase_before_and_only_the_main_one_saves_it(tmp_path):
    main, other = TwoPhases(), TwoPhases()
    session_of(main, Runtime(torch.device("cpu"))).train(tmp_path)

    # The main process has written the weights by then.
    session_of(other, OtherProcess(torch.device("cpu"))).train(tmp_path)

    assert main.saved == [tmp_path / "first"]
    assert other.saved == []
    assert all(
        torch.equal(a, b)
        for a, b in zip(main.first.state_dict().values(), other.first.state_dict().values(), strict=True)
    )


def test_the_hash_of_a_folder_follows_links_and_ignores_files_of_the_system(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for folder in (data / "red", elsewhere):
        folder.mkdir(parents=True)
        (folder / "1.txt").write_text("one")
    (data / "green").symlink_to(elsewhere)
    (data / "red" / "again").symlink_to(data)
    before = hash_data(data)

    (data / ".DS_Store").write_text("where the window is")
    assert hash_data(data) == before
    (elsewhere / "1.txt").write_text("two")
    assert hash_data(data) != before
