import pytest

from training.evaluation.classification import wilson_interval
from training.learners.sentiment.plots import draw_accuracy_by_length


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_groups_of_any_size_that_are_all_right_or_all_wrong_are_drawn(accuracy):
    groups = [(str(count), accuracy, *wilson_interval(accuracy, count)) for count in range(1, 60)]

    assert draw_accuracy_by_length(groups).startswith(b"\x89PNG")
