import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.goldens import read_goldens
from tasks.manifest import read_manifest
from tests.training.conftest import ROOT
from tests.training.street_scenes import scene, write_streets
from training.__main__ import main
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.data.download import Fetcher
from training.learners.segmentation.dataset import IGNORED, read_masks
from training.learners.segmentation.evaluate import Evidence, class_ious, class_mean_iou, confusions, findings
from training.learners.segmentation.learner import Options, SegmentationLearner, _dice, _weights
from training.learners.segmentation.network import Segmenter, ServedSegmenter
from training.publishing import export
from training.publishing.publish import replay
from training.registry import load_recipe
from training.vision.backbones import load_body

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture
def streets(tmp_path):
    """Makes a folder of pictures and masks."""
    return lambda count=8, *parts, root="streets", **more: write_streets(tmp_path / root, count, *parts, **more)


def learner(folder, **more):
    options = Options(backbone="resnet18", weights="none", width=48, height=36, crop_width=32, crop_height=24, **more)
    return SegmentationLearner(folder, Settings(label_smoothing=0.0), options, None)


def test_pixels_without_a_label_change_neither_loss_nor_scores(streets):
    made = learner(streets())
    torch.manual_seed(0)
    network = made.network().eval()
    batch = made.held_out.__getitems__([(0, 0), (0, 1)])
    with torch.no_grad():
        before = made.loss(network, batch)
        logits = network(batch["image"])[0]

    class Changed(torch.nn.Module):
        def forward(self, image):
            return (torch.where((batch["target"] == IGNORED).unsqueeze(1), torch.tensor(9.0), logits),)

    assert made.loss(Changed(), batch) == pytest.approx(float(before), rel=1e-5)


def test_a_batch_without_any_label_is_no_loss_and_no_nan(streets):
    made = learner(streets())
    network = made.network()
    image = torch.zeros(2, 24, 32, 3, dtype=torch.uint8)

    loss = made.loss(network, {"image": image, "target": torch.full((2, 24, 32), IGNORED, dtype=torch.uint8)})
    loss.backward()

    assert loss.item() == 0


def test_dice_is_nothing_for_the_right_answer_and_one_for_the_wrong_one():
    target = torch.tensor([[[0, 1], [1, 0]]])
    known = torch.ones_like(target, dtype=torch.bool)
    right = torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2).float() * 50

    assert float(_dice(right, target, known)) == pytest.approx(0, abs=1e-5)
    assert float(_dice(-right, target, known)) == pytest.approx(1, abs=1e-2)


def test_rare_classes_weigh_more_and_absent_ones_nothing():
    weights = _weights(np.array([100, 400, 25, 0]), 0.5)

    assert weights.tolist() == pytest.approx([1, 0.5, 2, 0])


def test_iou_is_counted_over_all_pixels_and_skips_classes_that_are_nowhere():
    said, target = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, IGNORED]])

    matrix = confusions(said, target, 3).numpy()

    assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert class_ious(matrix)[:2].tolist() == [0.5, 0.5]
    assert class_mean_iou(matrix) == 0.5


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("size", [(36, 48), (37, 51), (64, 33)])
def test_the_network_answers_for_each_pixel_of_any_size(fine, size):
    network = Segmenter(load_body("resnet18", None), 3, fine=fine, dropout=0.0).eval()

    with torch.no_grad():
        (logits,) = network(torch.zeros(1, *size, 3, dtype=torch.uint8))
        mask, confidence = ServedSegmenter(network, 1.5)(torch.zeros(1, *size, 3, dtype=torch.uint8))

    assert logits.shape == (1, 3, *size)
    assert torch.equal(mask, logits.argmax(dim=1).to(torch.uint8))
    expected = (logits / 1.5).softmax(dim=1).amax(dim=1) * 255
    assert (confidence.float() - expected).abs().max() <= 0.51


def test_findings_name_the_worst_picture_and_the_weakest_class(streets):
    made = learner(streets(12))
    classes = len(made.task.labels)

    def answers():
        for index in range(len(made.held_out)):
            batch = made.held_out.__getitems__([(0, index)])
            said = torch.where(batch["target"] == IGNORED, 0, batch["target"]).long()
            said = torch.zeros_like(said) if index == 1 else said
            yield batch, torch.nn.functional.one_hot(said, classes).permute(0, 3, 1, 2).float() * 5

    evidence = Evidence.gathered(answers(), made.held_out, 1.0)
    found = findings(evidence, made.samples, made.counts, ["Split."])

    assert evidence.worst[0][1] == 1
    figures = {metric.name: metric.value for metric in found.metrics}
    assert figures["pixel_accuracy"] == pytest.approx(np.diagonal(evidence.matrix).sum() / evidence.matrix.sum())
    assert {figure.title for figure in found.figures} >= {"Worst masks", "Confusion matrix", "Reliability"}
    assert all(Image.open(io.BytesIO(figure.png)).format == "PNG" for figure in found.figures)
    assert "weakest class" in found.failures[0]


def test_colours_are_given_one_for_each_label_or_are_an_error(streets):
    folder = streets()

    assert learner(folder, colours=("010203", "040506", "070809")).task.colours[1] == (4, 5, 6)
    with pytest.raises(CannotTrain, match="2 colours for 3 labels"):
        learner(folder, colours=("010203", "040506"))
    with pytest.raises(CannotTrain, match="hexadecimal"):
        learner(folder, colours=("red", "green", "blue!"))


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not in ../shared/data")
def test_camvid_is_eleven_classes_in_the_split_of_the_tutorial_with_void_left_out(tmp_path):
    found = load_recipe("camvid")
    folder = read_masks(
        Fetcher(tmp_path, str(SHARED), lambda text: None).fetch(found.source),
        labels=found.options.labels,
        unreadable="refuse",
        valid_fraction=0.2,
        size=480,
    )

    assert (len(folder.train), len(folder.validation)) == (367, 101)
    assert len(folder.classes.labels) == len(found.options.colours) == 11
    assert folder.classes.labels == found.options.labels[:-1]
    assert folder.classes.index[11] == IGNORED


@pytest.mark.slow
def test_pictures_with_masks_become_a_report_and_a_model_that_answers(streets, tmp_path, capsys):
    folder = streets(40)
    places = ["--runs", tmp_path / "runs", "--models", tmp_path / "models", "--data-dir", tmp_path / "data"]
    arguments = ["segmentation", "--data", folder, "--name", "streets", "--backbone", "resnet18", "--weights", "none"]
    sizes = ["--width", "48", "--height", "36", "--crop-width", "32", "--crop-height", "32"]
    more = ["--epochs", "3", "--batch-size", "8", "--rate", "0.004", "--device", "cpu", "--precision", "fp32"]

    status = main([str(word) for word in (*arguments, *sizes, *more, *places, "--publish", "--torchscript")])

    printed = capsys.readouterr()
    assert status == 0, printed.err
    model = tmp_path / "models" / "streets" / "1"
    replay(model)
    manifest = read_manifest(model)
    assert [metric.name for metric in manifest.metrics[:2]] == ["mean_iou", "pixel_accuracy"]
    assert manifest.metrics[1].value > 0.5
    task = manifest.load_task(model)
    assert task.labels == ("sky", "road", "house")
    picture, _ = scene(1000, (96, 72))
    picture.save(tmp_path / "new.png")
    body = {"image": (tmp_path / "new.png").read_bytes()}
    answer = task.answer(export.onnx_runner(model / "model.onnx", task), body)
    assert (answer.width, answer.height) == (96, 72)
    assert sum(entry.share for entry in answer.classes) == pytest.approx(1, abs=1e-4)
    assert {golden.request.get("mask") for golden in read_goldens(model)} == {None, "none"}
    card = (model / "README.md").read_text()
    assert re.search(r"mask in [\d.]+% of its elements", card)
    assert "The batch a sample is in" in card
    (report,) = (tmp_path / "runs" / "streets").rglob("index.html")
    assert "Worst masks" in report.read_text()
    assert json.loads((model / "manifest.json").read_text())["parameters"]["scene"] >= 0
