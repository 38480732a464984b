import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tasks.classification import Classification
from tasks.contract import Limits
from training.core.errors import CannotTrain
from training.data.images import LabelledImages, augmentation
from training.engine.batches import loader
from training.engine.runtime import Runtime
from training.learners.classification.image_folder import read_folder


def read(folder, **more):
    return read_folder(folder, **{"unreadable": "refuse", "valid_share": 0.25, "size": 32} | more)


def test_the_folders_are_the_labels_and_every_class_is_validated(photos):
    found = read(photos(count=12, classes=("red", "green", "blue")))

    assert found.labels == ("blue", "green", "red")
    assert len(found.train) == 27
    assert [sum(photo.label == label for photo in found.validation) for label in range(3)] == [3, 3, 3]


def test_the_same_folder_is_split_the_same_way_wherever_it_lies(photos, tmp_path):
    folder = photos()
    shutil.copytree(folder, tmp_path / "moved")

    names = [{photo.path.relative_to(root) for photo in read(root).validation} for root in (folder, tmp_path / "moved")]

    assert names[0] == names[1]


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_folders_for_training_and_validation_are_kept_as_they_are(photos, tmp_path, name):
    photos("all/train", count=6)
    photos(f"all/{name}", count=3, first=100)

    found = read(tmp_path / "all")

    assert (len(found.train), len(found.validation)) == (12, 6)
    assert name in found.split


def test_the_only_folder_of_an_unpacked_archive_is_looked_into(photos, tmp_path):
    photos("outer/inner/train", count=4)
    photos("outer/inner/validation", count=2, first=100)

    assert len(read(tmp_path / "outer").train) == 8


def test_copies_of_a_picture_are_never_on_both_sides(photos):
    folder = photos(count=10)
    for path in list(folder.rglob("*.png")):
        Image.open(path).save(path.with_name(path.stem + "-saved-again.bmp"))

    found = read(folder)

    sides = {photo.perceptual_hash: 0 for photo in found.train}
    assert not sides.keys() & {photo.perceptual_hash for photo in found.validation}
    assert len(sides) < len(found.train)


def test_training_pictures_that_are_copies_of_validation_pictures_are_left_out(photos, tmp_path):
    photos("all/train", count=6)
    photos("all/validation", count=2, first=0)

    found = read(tmp_path / "all")

    assert len(found.train) == 8
    assert "4 training pictures left out" in found.notices[0]


def test_an_unreadable_picture_is_named_and_refused_or_skipped(photos):
    folder = photos(count=6)
    (folder / "red" / "broken.jpg").write_bytes(b"this is no picture")

    with pytest.raises(CannotTrain, match=r"broken\.jpg.*--unreadable skip"):
        read(folder)
    found = read(folder, unreadable="skip")

    assert len(found.train) + len(found.validation) == 12
    assert "broken.jpg skipped" in found.notices[0]


def test_files_that_are_no_pictures_by_name_do_not_matter(photos):
    folder = photos(count=6)
    (folder / "red" / "Thumbs.db").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")

    assert not read(folder).notices


def test_wrong_folders_are_each_told_apart(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    photos("single", classes=("red",))
    photos("odd/train", count=4)
    photos("odd/valid", count=2, classes=("green", "blue"))

    for folder, sentence in [
        ("empty", "No pictures"),
        ("single", "one class only, 'red'"),
        ("odd", "'blue' is a class of .*valid and not of"),
        ("nowhere", "is not a folder"),
    ]:
        with pytest.raises(CannotTrain, match=sentence):
            read(tmp_path / folder)


def samples(photos, **more) -> LabelledImages:
    found = read(photos())
    task = Classification(found.labels, size=32)
    return LabelledImages(*listed(found.train), task, **more)


def listed(photos):
    return [photo.path for photo in photos], torch.tensor([photo.label for photo in photos])


def test_without_augmentation_a_sample_is_what_the_service_makes_of_the_file(photos):
    made = samples(photos)
    task, path = made.task, made.paths[3]

    batch = made.__getitems__([(0, 3)])

    request = task.parse({"image": path.read_bytes()}, Limits())
    served = task.preprocess(task.decode(request, Limits())).arrays["image"]
    assert torch.equal(batch["image"], torch.from_numpy(served.copy()))
    assert batch["target"].tolist() == [int(made.targets[3])]


def test_augmentation_follows_from_seed_epoch_and_picture_and_not_from_who_prepares_it(photos):
    made = samples(photos, seed=3, augment=augmentation(32, 0.5))
    keys = [[(0, 1), (0, 2)], [(1, 1), (0, 5)]]
    runtime = Runtime(torch.device("cpu"))

    torch.manual_seed(1)
    alone = [batch["image"] for batch in loader(made, keys, runtime, workers=0)]
    torch.manual_seed(2)
    helped = [batch["image"] for batch in loader(made, keys, runtime, workers=2)]

    assert all(torch.equal(one, other) for one, other in zip(alone, helped, strict=True))
    assert not torch.equal(alone[0][0], alone[1][0])


def test_pictures_beyond_the_memory_set_aside_are_decoded_again_and_are_the_same(photos):
    kept = samples(photos)
    poor = LabelledImages(kept.paths, kept.targets, kept.task, cache_bytes=48 * 40 * 3 * 2)
    kept.fill()
    poor.fill()
    keys = [(0, index) for index in range(len(kept))]

    assert torch.equal(kept.__getitems__(keys)["image"], poor.__getitems__(keys)["image"])


def test_training_may_see_smaller_pictures_than_the_service(photos):
    made = samples(photos, size=24, augment=augmentation(24, 0.5))

    assert made.__getitems__([(0, 0)])["image"].shape == (1, 24, 24, 3)
    assert replace(made.task, size=24).inputs[0].shape == (24, 24, 3)
