import pytest
import torch

from tasks.classification import Classification
from tasks.manifest import read_manifest
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.learners.classification.learner import ClassificationLearner
from training.publishing.publish import replay


def test_loss_with_mixup_is_lower_for_correct_logits(tagged_folder, tag_rows):
    options = type(ClassificationLearner.default_options)(weights="none", size=32, mixup=0.4)
    learner = ClassificationLearner.from_data(tagged_folder(tag_rows()), Settings(), options, None)
    batch = learner.samples.__getitems__([(0, i) for i in range(8)])

    class Correct(torch.nn.Module):
        def forward(self, image):
            return ((batch["target"] * 2 - 1) * 6,)

    class Wrong(torch.nn.Module):
        def forward(self, image):
            return ((1 - batch["target"] * 2) * 6,)

    torch.manual_seed(0)
    assert learner.loss(Correct(), batch) < learner.loss(Wrong(), batch)


def test_the_summary_counts_images_and_tags(tagged_folder, tag_rows):
    options = type(ClassificationLearner.default_options)(weights="none", size=32)

    learner = ClassificationLearner.from_data(tagged_folder(tag_rows()), Settings(), options, None)

    assert learner.data_summary().startswith("2 labels, 1.0 per image; 20 pictures to train on, 4 to validate: ")
    assert "6 of 24 images have no tag" in learner.data_summary()


@pytest.mark.slow
def test_table_of_tags_becomes_a_published_model(tagged_folder, tag_rows, train, tmp_path):
    folder = tagged_folder(tag_rows(48))
    flags = ["--weights", "none", "--backbone", "alexnet", "--size", "64", "--epochs", "3", "--no-augment"]

    status, out, err = train("classification", "--data", folder, "--name", "halves", *flags, "--publish")

    assert status == 0, err[-2000:]
    assert "always predicting 'left' and 'right': " in out
    published = tmp_path / "models" / "halves" / "1"
    replay(published)
    task = read_manifest(published).load_task(published)
    assert isinstance(task, Classification)
    assert len(task.thresholds) == 2
    assert "f2" in {metric.name for metric in read_manifest(published).metrics}
    (run,) = [path for path in (tmp_path / "runs" / "halves").iterdir() if path.is_dir()]
    assert "Per label" in (run / "index.html").read_text()


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.2])
def test_an_impossible_crop_fraction_is_an_error(tagged_folder, tag_rows, fraction):
    options = type(ClassificationLearner.default_options)(weights="none", size=32, min_crop_fraction=fraction)

    with pytest.raises(CannotTrain, match=f"--min-crop-fraction {fraction:g}"):
        ClassificationLearner.from_data(tagged_folder(tag_rows()), Settings(), options, None)
