import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tasks.classification import Classification
from tasks.contract import Limits
from training.core.errors import CannotTrain
from training.engine.batches import make_loader
from training.engine.runtime import Runtime
from training.learners.classification.dataset import LabelledImages
from training.learners.classification.image_folder import read_folder
from training.vision.augment import Augmentation


def read(folder, **changes):
    return read_folder(folder, **{"unreadable": "refuse", "valid_fraction": 0.25, "size": 32} | changes)


def test_the_folders_are_the_labels_and_every_class_has_validation_images(photos):
    data = read(photos(count=12, classes=("red", "green", "blue")))

    assert data.labels == ("blue", "green", "red")
    assert len(data.train) == 27
    assert [sum(photo.label == label for photo in data.validation) for label in range(3)] == [3, 3, 3]


def test_the_split_does_not_depend_on_the_path_of_the_folder(photos, tmp_path):
    folder = photos()
    shutil.copytree(folder, tmp_path / "moved")

    names = [{photo.path.relative_to(root) for photo in read(root).validation} for root in (folder, tmp_path / "moved")]

    assert names[0] == names[1]


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_folders_for_training_and_validation_define_the_split(photos, tmp_path, name):
    photos("all/train", count=6)
    photos(f"all/{name}", count=3, first=100)

    data = read(tmp_path / "all")

    assert (len(data.train), len(data.validation)) == (12, 6)
    assert name in data.split


def test_the_only_folder_of_an_unpacked_archive_is_entered(photos, tmp_path):
    photos("outer/inner/train", count=4)
    photos("outer/inner/validation", count=2, first=100)

    assert len(read(tmp_path / "outer").train) == 8


def test_copies_of_an_image_are_never_on_both_sides(photos):
    folder = photos(count=10)
    for path in list(folder.rglob("*.png")):
        Image.open(path).save(path.with_name(path.stem + "-saved-again.bmp"))

    data = read(folder)

    sides = {photo.perceptual_hash: 0 for photo in data.train}
    assert not sides.keys() & {photo.perceptual_hash for photo in data.validation}
    assert len(sides) < len(data.train)


def test_training_images_that_are_copies_of_validation_images_are_left_out(photos, tmp_path):
    photos("all/train", count=6)
    photos("all/validation", count=2, first=0)

    data = read(tmp_path / "all")

    assert len(data.train) == 8
    assert "4 training images were left out" in data.warnings[0]


def test_an_unreadable_image_is_named_and_refused_or_skipped(photos):
    folder = photos(count=6)
    (folder / "red" / "broken.jpg").write_bytes(b"not an image")

    with pytest.raises(CannotTrain, match=r"broken\.jpg.*--unreadable skip"):
        read(folder)
    data = read(folder, unreadable="skip")

    assert len(data.train) + len(data.validation) == 12
    assert "broken.jpg skipped" in data.warnings[0]


def test_files_without_an_image_suffix_are_left_out_and_counted(photos):
    folder = photos(count=6)
    (folder / "red" / "Thumbs.db").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")

    data = read(folder)

    assert len(data.train) + len(data.validation) == 12
    assert data.warnings == ("2 files were left out: 1 ending in .txt, 1 made by the operating system (Thumbs.db).",)


def test_each_kind_of_wrong_folder_has_its_own_message(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    photos("single", classes=("red",))
    photos("odd/train", count=4)
    photos("odd/valid", count=2, classes=("green", "blue"))

    for folder, sentence in [
        ("empty", "No images"),
        ("single", "one class only, 'red'"),
        ("odd", "'blue' is in .*valid but not in"),
        ("nowhere", "is not a folder"),
    ]:
        with pytest.raises(CannotTrain, match=sentence):
            read(tmp_path / folder)


def make_samples(photos, **options) -> LabelledImages:
    data = read(photos())
    task = Classification(data.labels, size=32)
    return LabelledImages(*paths_and_targets(data.train), task, **options)


def paths_and_targets(photos):
    return [photo.path for photo in photos], torch.tensor([photo.label for photo in photos])


def test_without_augmentation_a_sample_equals_what_the_service_computes(photos):
    samples = make_samples(photos)
    task, path = samples.task, samples.paths[3]

    batch = samples.__getitems__([(0, 3)])

    request = task.parse({"image": path.read_bytes()}, Limits())
    served = task.preprocess(task.decode(request, Limits())).arrays["image"]
    assert torch.equal(batch["image"], torch.from_numpy(served.copy()))
    assert batch["target"].tolist() == [int(samples.targets[3])]


def test_augmentation_depends_on_seed_epoch_and_image_not_on_the_process(photos):
    samples = make_samples(photos, seed=3, augment=Augmentation())
    keys = [[(0, 1), (0, 2)], [(1, 1), (0, 5)]]
    runtime = Runtime(torch.device("cpu"))

    torch.manual_seed(1)
    without_workers = [batch["image"] for batch in make_loader(samples, keys, runtime, workers=0)]
    torch.manual_seed(2)
    with_workers = [batch["image"] for batch in make_loader(samples, keys, runtime, workers=2)]

    assert all(torch.equal(a, b) for a, b in zip(without_workers, with_workers, strict=True))
    assert not torch.equal(without_workers[0][0], without_workers[1][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_each_seed_augments_otherwise(photos, workers):
    samples = make_samples(photos, augment=Augmentation())
    samples.fill_cache()
    keys = [[(0, 1), (0, 2)], [(1, 1), (0, 5)]]
    runtime = Runtime(torch.device("cpu"))

    first, second, again = (
        torch.cat([batch["image"] for batch in make_loader(samples.for_seed(seed), keys, runtime, workers=workers)])
        for seed in (0, 1, 0)
    )

    assert torch.equal(first, again)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_images_beyond_the_cache_are_decoded_again_with_the_same_result(photos):
    cached = make_samples(photos)
    small_cache = LabelledImages(cached.paths, cached.targets, cached.task, cache_bytes=48 * 40 * 3 * 2)
    cached.fill_cache()
    small_cache.fill_cache()
    keys = [(0, index) for index in range(len(cached))]

    assert torch.equal(cached.__getitems__(keys)["image"], small_cache.__getitems__(keys)["image"])


def test_training_images_may_be_smaller_than_those_of_the_service(photos):
    samples = make_samples(photos, size=24, augment=Augmentation())

    assert samples.__getitems__([(0, 0)])["image"].shape == (1, 24, 24, 3)
    assert replace(samples.task, size=24).inputs[0].shape == (24, 24, 3)
