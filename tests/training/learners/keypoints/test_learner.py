import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.manifest import read_manifest, verify_files
from tests.training.conftest import ROOT
from tests.training.learners.keypoints.dots import NAMES, draw_dots
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.results import Trained
from training.data.download import Fetcher
from training.learners.keypoints.learner import KeypointsLearner, Options
from training.learners.keypoints.network import HEADS
from training.publishing import export
from training.publishing.publish import refuse_worse_model, replay
from training.registry import load_recipe

SHARED = ROOT.parent / "shared" / "data"
BACKBONE = "alexnet"
QUICK = (
    *("--backbone", BACKBONE, "--weights", "none", "--size", "64", "--batch-size", "8"),
    *("--precision", "fp32", "--rate", "0.01", "--max-rotation", "5", "--max-scale", "1.1"),
)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not in ../shared/data")
def test_faces_are_split_by_person_and_symmetric_under_their_flip_pairs(tmp_path):
    recipe = load_recipe("faces")
    fetcher = Fetcher(tmp_path, str(SHARED), lambda text: None)
    # Small decoded images and no cache: only the split and the points are needed.
    options = replace(recipe.options, weights="none", size=32, cache_mb=0)

    learner = KeypointsLearner.from_data(fetcher.fetch(recipe.source), recipe.settings, options, fetcher)

    person = re.compile(recipe.options.group_pattern)
    train, validation = (
        {person.match(path.name)[1] for path in samples.paths} for samples in (learner.samples, learner.held_out)
    )
    assert not train & validation
    assert (len(train), len(validation)) == (266, 67)
    assert len(learner.samples) + len(learner.held_out) == 4057
    points = np.stack(learner.samples.points)
    points = points[~np.isnan(points).any(axis=(1, 2))]
    mean = (points - points.mean(axis=1, keepdims=True)).mean(axis=0)
    mirrored = (mean * (-1, 1))[list(learner.flip_indices)]
    assert np.abs(mean - mirrored).max() < 0.1 * np.ptp(mean[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_images_with_points_become_a_report_and_a_published_model(train, dots_folder, tmp_path, head):
    arguments = ("keypoints", "--data", dots_folder, "--name", "dots", "--head", head, "--epochs", "6", *QUICK)
    names = ("--group-column", "film", "--normalisation-pair", "left,right", "--links", "left=right,right=top", "--tta")

    status, out, err = train(*arguments, *names, "--publish")

    assert status == 0, err
    model = tmp_path / "models" / "dots" / "1"
    manifest = read_manifest(model)
    verify_files(model, manifest)
    replay(model)
    task = manifest.load_task(model)
    assert (task.names, task.links) == (NAMES, ((0, 1), (1, 2)))
    metrics = {metric.name: metric.value for metric in manifest.metrics}
    assert list(metrics)[:3] == ["mean_error", "median_error", "pck_5"]
    assert metrics["mean_error"] < 0.5
    image, points = draw_dots(1000)
    image.save(tmp_path / "new.png")
    runner = export.onnx_runner(model / "model.onnx", task)
    answer = task.answer(runner, {"image": (tmp_path / "new.png").read_bytes(), "overlay": True})
    assert (answer.width, answer.height) == (72, 72)
    assert answer.overlay is not None
    predicted = np.array([[point.x, point.y] for point in answer.points])
    assert np.abs(predicted - points).max() < 20
    card = (model / "README.md").read_text()
    for text in (
        "By part",
        "By group",
        "By apparent rotation",
        "confidence interval of the mean error",
        "Known failures",
    ):
        assert text in card
    (report,) = (tmp_path / "runs" / "dots").rglob("index.html")
    page = report.read_text()
    for text in (
        "Largest errors",
        "Typical predictions",
        "Cumulative error",
        "Reliability",
        "One image with different augmentations",
    ):
        assert text in page
    assert re.search(r"3 points; \d+ pictures to train on, \d+ to validate, of", out)


class Answers(torch.nn.Module):
    """Stands for an exported file: returns fixed points of the images, one after the other."""

    def __init__(self, points):
        super().__init__()
        self.points, self.next = torch.tensor(points, dtype=torch.float32), 0

    def forward(self, image):
        indices = [(self.next + i) % len(self.points) for i in range(len(image))]
        self.next = (self.next + len(image)) % len(self.points)
        return self.points[indices], torch.full((len(image), self.points.shape[1]), 0.7)


def load_dots(folder, **options):
    settings = {"backbone": BACKBONE, "weights": "none", "size": 64, "group_column": "film"} | options
    return KeypointsLearner.from_data(folder, Settings(), Options(**settings), Fetcher(folder))


def true_points(learner):
    """The points of the validation images in the network's square; those that are missing are 0."""
    pairs = zip(learner.frames, learner.validation_points, strict=True)
    return np.nan_to_num(np.stack([frame.to_network(points) for frame, points in pairs]))


def evaluate(learner, exported):
    torch.manual_seed(0)
    network = learner.network()
    served = learner.to_inference_module(network)
    return learner.evaluate([Trained(0, network, {"error": 0.5})], served, exported)


def test_errors_are_measured_on_the_exported_file_and_compared_with_the_mean_positions(dots_folder):
    learner = load_dots(dots_folder)
    points = true_points(learner)

    good, bad = (evaluate(learner, Answers(points + shift)) for shift in (0.1, 25.0))

    errors = [evaluation.metrics[0].value for evaluation in (good, bad)]
    assert errors[0] < 0.02
    assert errors[1] > 0.5
    (comparison,) = good.comparisons
    assert (comparison.metric, comparison.is_constant, comparison.lower_is_better) == ("mean_error", True, True)
    # The dots are within a fifth of the side of their mean.
    assert errors[0] < comparison.other_value < 0.3
    assert comparison.value == pytest.approx(errors[0])
    assert comparison.samples == "groups of validation images"
    refuse_worse_model(good)
    with pytest.raises(CannotTrain, match="worse than always answering the mean position of each point"):
        refuse_worse_model(bad)
    scores = learner.sample_scores(Answers(points + 0.1))
    assert np.nanmean(scores.values) == pytest.approx(errors[0])


def test_few_images_are_not_calibrated_and_it_is_said(dots_folder):
    learner = load_dots(dots_folder)

    evaluation = evaluate(learner, Answers(true_points(learner)))

    count = len(learner.held_out)
    caveat = f"The probabilities are not calibrated: {count} validation images; at least 200 are needed."
    assert evaluation.caveats == (caveat,)
    assert caveat in evaluation.notes
    protocols = {metric.name: metric.protocol for metric in evaluation.metrics}
    assert protocols["calibration_error"].endswith("not calibrated")
    assert "calibration_error_before" not in protocols
    assert evaluation.failures == ("The model always returns all points, even if the image shows none of them.",)


def write_dots(folder, count):
    folder.mkdir()
    rows = ["file," + ",".join(f"{name}_{axis}" for name in NAMES for axis in "xy")]
    for i in range(count):
        image, points = draw_dots(i, side=48)
        image.save(folder / f"{i:03}.png")
        rows.append(f"{i:03}.png," + ",".join(f"{value:.2f}" for value in points.flatten()))
    (folder / "points.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_enough_images_are_calibrated_and_the_error_is_measured_on_the_other_half(tmp_path):
    learner = load_dots(write_dots(tmp_path / "many", 260), group_column="", valid_fraction=0.9)

    evaluation = evaluate(learner, Answers(true_points(learner)))

    assert len(learner.held_out) >= 200
    assert evaluation.caveats == ()
    protocols = {metric.name: metric.protocol for metric in evaluation.metrics}
    assert "distinct images, calibrated on one half of them and measured on the other" in protocols["calibration_error"]
    assert "calibration_error_before" in protocols
    assert any("the calibration of the confidence" in note for note in evaluation.notes)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_hardly_any_images_are_evaluated(tmp_path, count):
    learner = load_dots(write_dots(tmp_path / "few", count), group_column="", valid_fraction=0.5)

    evaluation = evaluate(learner, Answers(true_points(learner)))

    assert all(np.isfinite(metric.value) for metric in evaluation.metrics)
    assert evaluation.figures[0].title == "Largest errors"
    assert any(note.startswith("Too few distinct images") for note in evaluation.notes)


def test_models_of_other_points_are_not_compared(dots_folder):
    learner = load_dots(dots_folder)

    assert learner.is_comparable(learner.task)
    assert not learner.is_comparable(replace(learner.task, names=("right", "left", "top")))


@pytest.mark.slow
def test_golden_requests_show_validation_images_and_one_overlay(dots_folder):
    options = replace(Options(), backbone=BACKBONE, weights="none", size=64, group_column="film")
    learner = KeypointsLearner.from_data(dots_folder, Settings(), options, Fetcher(dots_folder))
    torch.manual_seed(0)
    served = learner.to_inference_module(learner.network())

    task, bodies = learner.golden_requests(served)

    assert task == learner.task
    assert [body.get("overlay", False) for body in bodies] == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--normalisation-pair", "left,nose"), "--normalisation-pair left,nose: give two points"),
        (("--flip-pairs", "left=nose"), "--flip-pairs left=nose: give two points"),
        (("--links", "left"), "--links left"),
        (("--tta", "--flip-pairs", "left=right,right=left"), "a point can be in one pair only"),
        (("--group-column", "person"), "no column 'person'"),
        (("--tables", "other.csv"), "contains 0 files 'other.csv'"),
        (("--group-column", "film", "--names", "a,b"), "--names has 2 names"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_invalid_options_end_with_one_sentence_and_status_2(train, dots_folder, arguments, message):
    needs_group = not any("column" in word for word in (*arguments, message))
    group = ("--group-column", "film") if needs_group else ()

    status, _, err = train("keypoints", "--data", dots_folder, *QUICK, *arguments, *group)

    line = err.strip().splitlines()[-1]
    assert (status, line.startswith("training: "), message in line) == (2, True, True), err
    assert "Traceback" not in err
