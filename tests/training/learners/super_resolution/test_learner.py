import io
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tasks.contract import Limits
from tasks.goldens import read_goldens
from tasks.manifest import read_manifest
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.core.results import Trained
from training.learners.super_resolution.learner import Options, SuperResolutionLearner
from training.learners.super_resolution.metrics import psnr
from training.learners.super_resolution.network import ServedGenerator
from training.publishing.export import onnx_runner
from training.publishing.publish import refuse_worse_model, replay

BODY = "shufflenet_v2_x0_5"


def load_learner(folder, **options):
    defaults = {"backbone": BODY, "weights": "none", "width": 8, "blocks": 1, "crop_size": 40, "tile": 64}
    options = Options(**defaults | options)
    return SuperResolutionLearner(folder, Settings(batch_size=2), options, None)


def test_loss_is_of_pixels_first_and_perceptual_later(sharp_folder):
    learner = load_learner(sharp_folder(*(f"{n}.png" for n in range(6))), pixel_epochs=1)
    network = learner.network()

    def losses():
        with torch.no_grad():
            batches = [learner.samples.__getitems__([(epoch, 0), (epoch, 1)]) for epoch in (0, 1)]
            return [float(learner.loss(network, batch)) for batch in batches]

    with_perceptual = losses()
    learner.options = replace(learner.options, feature_weight=0.0, style_weight=0.0)
    without = losses()

    assert with_perceptual[0] == without[0]
    assert with_perceptual[1] > without[1]


def test_the_summary_counts_images(sharp_folder):
    learner = load_learner(sharp_folder(*(f"{n}.png" for n in range(6))))

    assert learner.data_summary().startswith("5 pictures to train on, 1 to validate: ")


def test_tiled_restoration_equals_bicubic_for_an_untrained_network(sharp_folder):
    learner = load_learner(sharp_folder(*(f"{n}.png" for n in range(6)), size=(300, 220)))
    served = learner.to_inference_module(learner.network())
    degraded, _ = learner.held_out.degraded_pair(0)

    restored = learner._restore_tiled(served, degraded.pixels)

    assert psnr(restored, learner._upscale_bicubic(degraded.pixels)) > 50


def test_golden_requests_have_different_file_formats(sharp_folder):
    learner = load_learner(sharp_folder(*(f"{n}.png" for n in range(12)), size=(240, 200)), valid_fraction=0.3)

    task, bodies = learner.golden_requests(learner.to_inference_module(learner.network()))

    assert task == learner.task
    assert [body.get("format") for body in bodies] == [None, "jpeg", "webp"]
    assert all(task.parse(body, Limits()) for body in bodies)


class Darker(ServedGenerator):
    """Stands for an exported file that restores images worse than bicubic resizing."""

    def forward(self, image):
        return (super().forward(image)[0] // 2,)


def test_images_are_measured_on_the_exported_file_and_compared_with_bicubic_resizing(sharp_folder):
    learner = load_learner(sharp_folder(*(f"{n}.png" for n in range(25)), size=(140, 130)), valid_fraction=0.4)
    network = learner.network()
    served = learner.to_inference_module(network)
    trained = [Trained(0, network, {"gain": 0.0})]

    untrained, dark = (learner.evaluate(trained, served, module) for module in (served, Darker(served.network)))

    gains = [next(m.value for m in e.metrics if m.name == "psnr_gain") for e in (untrained, dark)]
    assert gains[0] == pytest.approx(0, abs=0.1)
    assert gains[1] < -3
    assert dark.comparisons[0].other == "bicubic resizing"
    assert not dark.comparisons[0].is_constant
    refuse_worse_model(untrained)
    with pytest.raises(CannotTrain, match="surely worse than bicubic resizing: psnr is"):
        refuse_worse_model(dark)
    scores = learner.sample_scores(Darker(served.network))
    assert scores.values.mean() == pytest.approx(dark.comparisons[0].value)
    assert learner.is_comparable(learner.task)
    assert not learner.is_comparable(replace(learner.task, scale=3))


@pytest.mark.parametrize("images", [2, 3, 5])
def test_hardly_any_images_are_evaluated(sharp_folder, images):
    learner = load_learner(sharp_folder(*(f"{n}.png" for n in range(images))), valid_fraction=0.4)
    network = learner.network()
    served = learner.to_inference_module(network)

    evaluation = learner.evaluate([Trained(0, network, {"gain": 0.0})], served, served)

    assert evaluation.figures[0].title == "Gains"
    assert all(math.isfinite(metric.value) for metric in evaluation.metrics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 5}, "--scale 5"),
        ({"crop_size": 33}, "--crop-size 33"),
        ({"tile": 32}, "--tile 32"),
        ({"min_quality": 80}, "--min-quality"),
    ],
)
def test_invalid_options_are_refused_by_name(sharp_folder, options, message):
    with pytest.raises(CannotTrain, match=message):
        load_learner(sharp_folder("a.png", "b.png"), **options)


@pytest.mark.slow
def test_sharp_images_become_a_report_and_a_published_model(sharp_folder, train, tmp_path):
    folder = sharp_folder(*(f"{n}.png" for n in range(8)))
    network = ["--backbone", BODY, "--weights", "none", "--width", "8", "--blocks", "1"]
    sizes = ["--crop-size", "40", "--tile", "64", "--crops-per-image", "1", "--batch-size", "2"]
    arguments = ["--data", folder, "--name", "own", *network, *sizes, "--epochs", "2", "--pixel-epochs", "1"]

    status, out, err = train("super_resolution", *arguments, "--publish")

    assert status == 0, err
    model = tmp_path / "models" / "own" / "1"
    replay(model)
    manifest = read_manifest(model)
    assert f"Published: {model}" in out
    assert "psnr_gain" in {metric.name for metric in manifest.metrics}
    assert "is invented" in (model / "README.md").read_text()
    assert len(read_goldens(model)) == 3
    task = manifest.load_task(model)
    answer = task.answer(onnx_runner(model / "model.onnx", task), {"image": encode_pixel()})
    assert (answer.width, answer.height) == (2, 2)
    (report,) = (tmp_path / "runs" / "own").glob("*/index.html")
    assert ">Gains<" in report.read_text(), "one figure shows all of a few images"


def encode_pixel():
    """An image of one pixel, as PNG."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), (200, 30, 40)).save(file, "PNG")
    return file.getvalue()
