"""The comparison with the version that a model would replace."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.tabular import Tabular
from tests.model_folders import edit_manifest, publish
from tests.tiny.classification import TASK as IMAGES
from tests.tiny.classification import graph as image_graph
from tests.tiny.tabular import CREDIT, credit_graph, failing_credit_graph
from tests.training.toy_learner import SmallLearner
from training.core.results import SampleScores
from training.publishing.export import Export, Parity
from training.publishing.previous_version import compare_with_previous

ROWS = 40
UNKNOWN_JOB = {"rows": [{"income": 50.0, "debt": 5.0, "job": None}]}


class Loans(SmallLearner):
    """Validates on rows of the task CREDIT, all of which are of its second class."""

    task: Tabular = CREDIT

    def is_comparable(self, previous):
        return super().is_comparable(previous) and previous.labels == self.task.labels

    def sample_scores(self, exported):
        random = np.random.default_rng(0)
        numbers = torch.tensor(random.normal(0, 50, (ROWS, 2)).astype(np.float32))
        (probabilities,) = exported(torch.full((ROWS, 1), 2), numbers)
        return SampleScores("accuracy", (probabilities[:, 1] > 0.5).double().numpy(), "validation rows")


@pytest.fixture
def export(tmp_path):
    """The exported file of the learner."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(credit_graph())
    return Export(folder, CREDIT, Parity(0.0, (), {}, (), (), ROWS, (1,)))


def test_the_same_file_is_neither_better_nor_worse_than_itself(export, tmp_path):
    publish(tmp_path, "loans", CREDIT, credit_graph())

    previous = compare_with_previous(Loans(), export, tmp_path / "loans")

    (comparison,) = previous.comparisons
    assert (comparison.other, comparison.gain) == ("version 1, which it replaces", 0)
    assert comparison.verdict == "not surely better or worse"
    assert not previous.notes


def test_the_last_version_is_the_one_with_the_highest_number(export, tmp_path):
    for version in (2, 10):
        publish(tmp_path, "loans", CREDIT, credit_graph(), version=version)
    (tmp_path / "loans" / ".12.partial").mkdir()

    (comparison,) = compare_with_previous(Loans(), export, tmp_path / "loans").comparisons

    assert comparison.other.startswith("version 10,")


def test_without_a_version_there_is_nothing_to_compare_with_and_nothing_to_say(export, tmp_path):
    previous = compare_with_previous(Loans(), export, tmp_path / "loans")

    assert not previous.comparisons
    assert not previous.notes


def lose_a_file(folder):
    (folder / "model.onnx").unlink()


def lose_the_manifest(folder):
    (folder / "manifest.json").unlink()


def name_an_unknown_task(folder):
    edit_manifest(folder, task="divination")


@pytest.mark.parametrize(
    ("task", "graph", "harm", "reason"),
    [
        (CREDIT, credit_graph, lose_a_file, "model.onnx is missing."),
        (CREDIT, credit_graph, lose_the_manifest, "manifest.json"),
        (CREDIT, credit_graph, name_an_unknown_task, "The task 'divination' is not one of"),
        (IMAGES, image_graph, None, "its labels, inputs or outputs are others."),
        (replace(CREDIT, labels=("never", "always")), credit_graph, None, "its labels, inputs or outputs are others."),
    ],
)
def test_a_version_that_cannot_be_compared_is_no_obstacle_but_it_is_said_why(
    export, tmp_path, task, graph, harm, reason
):
    folder = publish(tmp_path, "loans", task, graph())
    if harm:
        harm(folder)

    previous = compare_with_previous(Loans(), export, tmp_path / "loans")

    assert not previous.comparisons
    (note,) = previous.notes
    assert note.startswith("Not compared with version 1, which it replaces: ")
    assert reason in note
    assert str(tmp_path) not in note, "Cards contain no path of the machine that trained."


def test_a_version_whose_file_fails_when_it_is_run_is_no_obstacle(export, tmp_path):
    folder = publish(tmp_path, "loans", CREDIT, failing_credit_graph(), request=UNKNOWN_JOB)

    previous = compare_with_previous(Loans(), export, folder.parent)

    assert not previous.comparisons
    assert "its model.onnx cannot be run (" in previous.notes[0]
