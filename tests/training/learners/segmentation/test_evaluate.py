import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot

from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.results import Trained
from training.learners.segmentation.classes import IGNORED
from training.learners.segmentation.evaluate import (
    CalibrationPixels,
    MeanIou,
    ValidationResults,
    class_ious,
    class_mean_iou,
    confusion_counts,
    describe_failures,
    evaluate_results,
)
from training.learners.segmentation.learner import Options, SegmentationLearner
from training.publishing.publish import refuse_worse_model

LABELS = ("sky", "road", "house")


def test_iou_is_computed_over_all_pixels_and_skips_absent_classes():
    predicted, target = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, IGNORED]])

    matrix = confusion_counts(predicted, target, 3).numpy()

    assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert class_ious(matrix)[:2].tolist() == [0.5, 0.5]
    assert class_mean_iou(matrix) == 0.5
    assert class_mean_iou(np.zeros((3, 3), int)) == 0.0


def test_iou_of_selected_images_is_that_of_their_pixels_together():
    matrices = np.random.default_rng(0).integers(0, 9, (5, 3, 3))
    matrices[:, 2] = matrices[:, :, 2] = 0

    assert MeanIou.of(matrices)(np.array([1, 1, 4])) == pytest.approx(class_mean_iou(matrices[[1, 1, 4]].sum(axis=0)))


def load(folder):
    options = Options(backbone="squeezenet1_1", weights="none", width=48, height=36, crop_width=32, crop_height=24)
    return SegmentationLearner(folder, Settings(label_smoothing=0.0), options, None)


class Answers(torch.nn.Module):
    """Stands for an exported file: returns the true mask of each image, except those that `spoil` changes."""

    def __init__(self, learner, spoil=lambda index, mask: mask):
        super().__init__()
        batch = learner.held_out.__getitems__([(0, index) for index in range(len(learner.held_out))])
        known = torch.where(batch["target"] == IGNORED, 0, batch["target"])
        self.images = batch["image"]
        self.masks = torch.stack([spoil(index, mask.clone()) for index, mask in enumerate(known)])

    def forward(self, image):
        indices = [int((self.images == one).flatten(1).all(dim=1).nonzero()[0]) for one in image]
        masks = self.masks[indices]
        return masks.to(torch.uint8), torch.full_like(masks, 204, dtype=torch.uint8)


def evaluate(learner, exported):
    torch.manual_seed(0)
    network = learner.network()
    served = learner.to_inference_module(network)
    return learner.evaluate([Trained(0, network, {"mean_iou": 0.5})], served, exported)


def test_evaluation_names_the_worst_image_and_the_weakest_class(streets):
    learner = load(streets(12))
    exported = Answers(learner, lambda index, mask: torch.zeros_like(mask) if index == 1 else mask)

    evaluation = evaluate(learner, exported)
    results = learner._validation_results(exported)

    assert results.worst[0][1] == 1
    metrics = {metric.name: metric.value for metric in evaluation.metrics}
    assert metrics["pixel_accuracy"] == pytest.approx(np.diagonal(results.matrix).sum() / results.matrix.sum())
    titles = {figure.title for figure in evaluation.figures}
    assert titles >= {"Masks with the lowest IoU", "Confusion matrix", "Reliability"}
    assert all(Image.open(io.BytesIO(figure.png)).format == "PNG" for figure in evaluation.figures)
    assert "weakest class" in evaluation.failures[0]


def test_masks_are_measured_on_the_exported_file_and_compared_with_the_most_frequent_class(streets):
    learner = load(streets(12))
    majority = int(learner.train_counts.argmax())

    good = evaluate(learner, Answers(learner))
    bad = evaluate(learner, Answers(learner, lambda index, mask: torch.full_like(mask, (majority + 1) % 3)))

    assert good.metrics[0].value == 1.0 > bad.metrics[0].value
    assert good.failures == ()
    (comparison,) = good.comparisons
    assert (comparison.value, comparison.is_constant) == (1.0, True)
    assert comparison.other == f"always predicting '{learner.task.labels[majority]}'"
    refuse_worse_model(good)
    if bad.comparisons[0].gain < 0:
        with pytest.raises(CannotTrain, match="worse than always predicting"):
            refuse_worse_model(bad)
    assert learner.sample_scores(Answers(learner)).values.tolist() == [1.0] * len(learner.held_out.pairs)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_hardly_any_validation_images_are_evaluated_without_calibration(streets, count):
    streets(4, "train", "trainannot")
    folder = streets(count, "val", "valannot", first=10)
    learner = load(folder)

    evaluation = evaluate(learner, Answers(learner))

    images = "1 validation image" if count == 1 else f"{count} validation images"
    assert evaluation.caveats == (f"The probabilities are not calibrated: {images}; at least 20 are needed.",)
    assert any("too few for a confidence interval" in note for note in evaluation.notes)
    calibration_errors = [metric for metric in evaluation.metrics if "calibration" in metric.name]
    assert [metric.value for metric in calibration_errors] == [pytest.approx(0.2, abs=1e-3)]
    assert calibration_errors[0].protocol.endswith("not calibrated")


def test_enough_images_are_calibrated_and_the_error_is_cross_fitted(streets):
    streets(4, "train", "trainannot")
    learner = load(streets(24, "val", "valannot", first=10))

    exported = Answers(learner, lambda index, mask: mask if index % 3 else mask.roll(9, 1))

    def logits():
        for index in range(len(learner.held_out)):
            batch = learner.held_out.__getitems__([(0, index)])
            mask = exported(batch["image"])[0].long()
            yield batch, one_hot(mask, 3).permute(0, 3, 1, 2).float() * 9

    pixels = CalibrationPixels.collect(logits(), learner.held_out)
    fitted = pixels.calibrate()
    results = learner._validation_results(exported)
    evaluation = evaluate_results(results, pixels, fitted, learner.samples, learner.train_counts, [])

    assert fitted.temperature > 2
    assert evaluation.caveats == ()
    metrics = {metric.name: metric for metric in evaluation.metrics}
    assert "temperature fitted on the other" in metrics["calibration_error"].protocol
    assert metrics["calibration_error"].value < metrics["calibration_error_before"].value


def test_masks_without_a_known_pixel_have_finite_metrics(streets):
    learner = load(streets(8))
    empty = np.zeros((2, 3, 3), int)

    results = ValidationResults(learner.held_out, empty, np.zeros(0), np.zeros(0, bool))

    assert np.isnan(results.image_ious()).all()
    assert describe_failures(results.matrix, LABELS) == ()
    pixels = CalibrationPixels(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), np.zeros(0, int))
    assert pixels.calibrate().reason == "0 validation images; at least 20 are needed"


def test_validation_masks_without_a_label_are_refused(streets):
    streets(4, "train", "trainannot")
    folder = streets(2, "val", "valannot", first=10)
    for path in (folder / "valannot").iterdir():
        Image.fromarray(np.full((36, 48), 2, np.uint8)).save(path)

    with pytest.raises(CannotTrain, match="All pixels of the 2 validation masks are unlabelled"):
        load(folder)


def test_failures_follow_from_the_counts():
    assert describe_failures(np.diag([5, 4, 3]), LABELS) == ()
    assert describe_failures(np.array([[9990, 10, 0], [0, 50, 1], [0, 0, 0]]), LABELS) == (
        "The weakest class is 'road': IoU 0.82, 98.0% of its pixels are found.",
        "'house' is in no validation mask, but 1 pixel was predicted as it.",
        "2% of the pixels of 'road' were predicted as 'house'.",
    )


def test_models_with_other_labels_are_not_compared(streets):
    learner = load(streets(8))

    assert learner.is_comparable(learner.task)
    assert not learner.is_comparable(replace(learner.task, labels=("sky", "house", "road")))
    assert not learner.is_comparable(replace(learner.task, fit="squash"))
