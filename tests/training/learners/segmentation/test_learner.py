import json
import re

import numpy as np
import pytest
import torch

from tasks.goldens import read_goldens
from tasks.manifest import read_manifest
from tests.training.conftest import ROOT
from tests.training.learners.segmentation.street_scenes import draw_scene
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.data.download import Fetcher
from training.learners.segmentation.classes import IGNORED, MaskRules
from training.learners.segmentation.learner import Options, SegmentationLearner, _class_weights, soft_dice_loss
from training.learners.segmentation.mask_folder import read_mask_folder
from training.publishing import export
from training.publishing.publish import replay
from training.registry import load_recipe

SHARED = ROOT.parent / "shared" / "data"
BACKBONE = "squeezenet1_1"


def load_learner(folder, **options):
    sizes = {"width": 48, "height": 36, "crop_width": 32, "crop_height": 24}
    options = Options(backbone=BACKBONE, weights="none", **sizes, **options)
    return SegmentationLearner(folder, Settings(label_smoothing=0.0), options, None)


def test_unlabelled_pixels_do_not_change_the_loss(streets):
    learner = load_learner(streets())
    torch.manual_seed(0)
    network = learner.network().eval()
    batch = learner.held_out.__getitems__([(0, 0), (0, 1)])
    with torch.no_grad():
        before = learner.loss(network, batch)
        logits = network(batch["image"])[0]

    class Changed(torch.nn.Module):
        def forward(self, image):
            return (torch.where((batch["target"] == IGNORED).unsqueeze(1), torch.tensor(9.0), logits),)

    assert learner.loss(Changed(), batch) == pytest.approx(float(before), rel=1e-5)


def test_batch_without_labels_has_loss_zero_and_finite_gradients(streets):
    learner = load_learner(streets())
    network = learner.network()
    image = torch.zeros(2, 24, 32, 3, dtype=torch.uint8)

    loss = learner.loss(network, {"image": image, "target": torch.full((2, 24, 32), IGNORED, dtype=torch.uint8)})
    loss.backward()

    assert loss.item() == 0
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.grad is not None)


def test_dice_loss_is_zero_for_the_correct_mask_and_one_for_a_wrong_one():
    target = torch.tensor([[[0, 1], [1, 0]]])
    known = torch.ones_like(target, dtype=torch.bool)
    correct = torch.nn.functional.one_hot(target, 3).permute(0, 3, 1, 2).float() * 50

    assert float(soft_dice_loss(correct, target, known)) == pytest.approx(0, abs=1e-5)
    assert float(soft_dice_loss(-correct, target, known)) == pytest.approx(1, abs=1e-2)


def test_rare_classes_have_larger_weights_and_absent_ones_none():
    weights = _class_weights(np.array([100, 400, 25, 0]), 0.5)

    assert weights.tolist() == pytest.approx([1, 0.5, 2, 0])


def test_colours_must_be_one_hexadecimal_colour_per_label(streets):
    folder = streets()

    assert load_learner(folder, colours=("010203", "040506", "070809")).task.colours[1] == (4, 5, 6)
    with pytest.raises(CannotTrain, match="2 colours for 3 labels"):
        load_learner(folder, colours=("010203", "040506"))
    with pytest.raises(CannotTrain, match="hexadecimal"):
        load_learner(folder, colours=("red", "green", "blue!"))


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not in ../shared/data")
def test_camvid_has_eleven_classes_without_void_in_the_split_of_the_tutorial(tmp_path):
    recipe = load_recipe("camvid")
    data = read_mask_folder(
        Fetcher(tmp_path, str(SHARED), lambda text: None).fetch(recipe.source),
        MaskRules(labels=recipe.options.labels, colours=recipe.options.colours),
        unreadable="refuse",
        valid_fraction=0.2,
        size=480,
    )

    assert (len(data.train), len(data.validation)) == (367, 101)
    assert len(data.classes.labels) == len(recipe.options.colours) == 11
    assert data.classes.labels == recipe.options.labels[:-1]
    assert data.classes.index_of_value[11] == IGNORED


@pytest.mark.slow
def test_images_with_masks_become_a_report_and_a_published_model(streets, train, tmp_path):
    arguments = ["segmentation", "--data", streets(30), "--name", "streets", "--backbone", BACKBONE]
    sizes = ["--width", "48", "--height", "36", "--crop-width", "32", "--crop-height", "32"]
    training = ["--weights", "none", "--epochs", "3", "--batch-size", "8", "--rate", "0.004", "--precision", "fp32"]

    status, _, err = train(*arguments, *sizes, *training, "--publish", "--torchscript")

    assert status == 0, err
    model = tmp_path / "models" / "streets" / "1"
    replay(model)
    manifest = read_manifest(model)
    assert [metric.name for metric in manifest.metrics[:2]] == ["mean_iou", "pixel_accuracy"]
    assert manifest.metrics[1].value > 0.5
    task = manifest.load_task(model)
    assert task.labels == ("sky", "road", "house")
    image, _ = draw_scene(1000, (96, 72))
    image.save(tmp_path / "new.png")
    answer = task.answer(export.onnx_runner(model / "model.onnx", task), {"image": (tmp_path / "new.png").read_bytes()})
    assert (answer.width, answer.height) == (96, 72)
    assert sum(entry.share for entry in answer.classes) == pytest.approx(1, abs=1e-4)
    assert {golden.request.get("mask") for golden in read_goldens(model)} == {None, "none"}
    card = (model / "README.md").read_text()
    assert re.search(r"mask in [\d.]+% of its elements", card)
    assert "depending on its batch" in card
    (report,) = (tmp_path / "runs" / "streets").rglob("index.html")
    assert "Masks with the lowest IoU" in report.read_text()
    assert json.loads((model / "manifest.json").read_text())["parameters"]["scene"] >= 0
