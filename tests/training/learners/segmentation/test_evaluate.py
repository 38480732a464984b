import io

import numpy as np
import pytest
import torch
from PIL import Image

from training.core.config import Settings
from training.learners.segmentation.classes import IGNORED
from training.learners.segmentation.evaluate import (
    ValidationResults,
    class_ious,
    class_mean_iou,
    confusion_counts,
    evaluate_results,
)
from training.learners.segmentation.learner import Options, SegmentationLearner


def test_iou_is_computed_over_all_pixels_and_skips_absent_classes():
    predicted, target = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, IGNORED]])

    matrix = confusion_counts(predicted, target, 3).numpy()

    assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert class_ious(matrix)[:2].tolist() == [0.5, 0.5]
    assert class_mean_iou(matrix) == 0.5


def test_evaluation_names_the_worst_image_and_the_weakest_class(streets):
    options = Options(weights="none", width=48, height=36, crop_width=32, crop_height=24)
    learner = SegmentationLearner(streets(12), Settings(label_smoothing=0.0), options, None)
    classes = len(learner.task.labels)

    def outputs():
        for index in range(len(learner.held_out)):
            batch = learner.held_out.__getitems__([(0, index)])
            predicted = torch.where(batch["target"] == IGNORED, 0, batch["target"]).long()
            predicted = torch.zeros_like(predicted) if index == 1 else predicted
            yield batch, torch.nn.functional.one_hot(predicted, classes).permute(0, 3, 1, 2).float() * 5

    results = ValidationResults.collect(outputs(), learner.held_out, 1.0)
    evaluation = evaluate_results(results, learner.samples, learner.train_counts, ["Split."])

    assert results.worst[0][1] == 1
    metrics = {metric.name: metric.value for metric in evaluation.metrics}
    assert metrics["pixel_accuracy"] == pytest.approx(np.diagonal(results.matrix).sum() / results.matrix.sum())
    assert {figure.title for figure in evaluation.figures} >= {"Worst masks", "Confusion matrix", "Reliability"}
    assert all(Image.open(io.BytesIO(figure.png)).format == "PNG" for figure in evaluation.figures)
    assert "weakest class" in evaluation.failures[0]
