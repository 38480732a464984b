"""Evaluation of classifiers: measured on the exported file, and described as the figures are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.core.config import Settings
from training.core.results import Trained
from training.learners.classification.learner import ClassificationLearner, describe_failures
from training.publishing.publish import refuse_worse_model

LABELS = ("ant", "bee", "cow")


class Answers(torch.nn.Module):
    """Stands for an exported file: returns fixed probabilities of the images, one after the other."""

    def __init__(self, probabilities):
        super().__init__()
        self.probabilities, self.next = torch.tensor(probabilities, dtype=torch.float32), 0

    def forward(self, image):
        indices = [(self.next + i) % len(self.probabilities) for i in range(len(image))]
        self.next = (self.next + len(image)) % len(self.probabilities)
        return self.probabilities[indices], torch.zeros(len(image), self.probabilities.shape[1], 2, 2)


def load(folder):
    options = type(ClassificationLearner.default_options)(weights="none", size=32, backbone="alexnet")
    return ClassificationLearner.from_data(folder, Settings(epochs=2), replace(options, size=64), None)


def answers_of(learner, *, right):
    """Probabilities that are all right, or all wrong."""
    targets = learner.targets.long().numpy()
    if targets.ndim == 2:
        return Answers(np.where(targets == right, 0.9, 0.1))
    count = len(learner.task.labels)
    chosen = targets if right else (targets + 1) % count
    return Answers(np.eye(count)[chosen] * 0.8 + 0.2 / count)


def evaluate(learner, exported):
    torch.manual_seed(0)
    network = learner.network()
    served = learner.to_inference_module(network)
    return learner.evaluate([Trained(0, network, {"accuracy": 0.5, "average_precision": 0.5})], served, exported)


def test_what_is_reported_is_measured_on_the_exported_file(photos):
    learner = load(photos(count=10, classes=("green", "red")))

    good, bad = (evaluate(learner, answers_of(learner, right=right)) for right in (True, False))

    assert (good.metrics[0].value, bad.metrics[0].value) == (1.0, 0.0)
    assert (good.comparisons[0].value, bad.comparisons[0].value) == (1.0, 0.0)
    assert learner.sample_scores(answers_of(learner, right=False)).values.max() == 0
    refuse_worse_model(good)
    with pytest.raises(Exception, match="worse than always predicting"):
        refuse_worse_model(bad)


def test_tags_are_measured_on_the_exported_file_too(tagged_folder, tag_rows):
    learner = load(tagged_folder(tag_rows(48)))

    good, bad = (evaluate(learner, answers_of(learner, right=right)) for right in (True, False))

    values = [{metric.name: metric.value for metric in evaluation.metrics} for evaluation in (good, bad)]
    assert values[0]["mean_average_precision"] == 1.0 > values[1]["mean_average_precision"]
    assert (good.comparisons[0].is_constant, good.comparisons[0].other) == (
        True,
        "always predicting 'left' and 'right'",
    )
    assert bad.comparisons[0].gain <= 0 < good.comparisons[0].gain
    assert learner.sample_scores(answers_of(learner, right=True)).values.min() == 1
    assert good.failures == ()
    assert bad.failures != ()


def test_a_perfect_model_has_no_failures_and_few_images_are_not_calibrated(photos):
    learner = load(photos(count=10, classes=("green", "red")))

    evaluation = evaluate(learner, answers_of(learner, right=True))

    count = len(learner.held_out)
    assert evaluation.failures == ()
    assert "No mistake on the validation images. They are few: see the confidence interval." in evaluation.notes
    caveat = f"The probabilities are not calibrated: {count} validation images; at least 200 are needed."
    assert evaluation.caveats == (caveat,)
    assert caveat in evaluation.notes
    assert not any("temperature" in note for note in evaluation.notes)
    reliability = next(figure for figure in evaluation.figures if figure.title == "Reliability")
    assert reliability.note == caveat
    assert learner.to_inference_module(learner.network()).temperature == 1.0


def test_models_with_other_labels_are_not_compared(photos):
    learner = load(photos(count=10, classes=("green", "red")))
    task = learner.task

    assert learner.is_comparable(task)
    assert not learner.is_comparable(replace(task, labels=("red", "green")))
    assert not learner.is_comparable(replace(task, fit="crop"))


def test_a_single_validation_image_is_evaluated(tagged_folder):
    rows = [(f"p{i}", "left" if i % 2 else "right", "validation" if i == 3 else "train") for i in range(6)]
    learner = load(tagged_folder(rows, ("image_name", "tags", "split")))

    evaluation = evaluate(learner, answers_of(learner, right=True))

    assert all(np.isfinite(metric.value) for metric in evaluation.metrics)
    assert any("No validation image has" in note for note in evaluation.notes)


def test_confusions_are_counted_in_plain_numbers():
    matrix = np.array([[28, 1, 1], [0, 3, 1], [0, 0, 0]])

    assert describe_failures(matrix, LABELS) == (
        "1 of 30 images of 'ant' was predicted as 'bee' (3.3%).",
        "1 of 30 images of 'ant' was predicted as 'cow' (3.3%).",
        "1 of 4 images of 'bee' was predicted as 'cow'.",
        "The weakest class is 'bee': the model finds 3 of its 4 images.",
    )


def test_a_class_without_images_is_not_the_weakest():
    assert describe_failures(np.array([[5, 0, 0], [0, 4, 0], [0, 0, 0]]), LABELS) == ()
