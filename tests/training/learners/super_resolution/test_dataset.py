import shutil

import numpy as np
import pytest
import torch

from tests.training.learners.super_resolution.scenes import draw_scene
from training.core.errors import CannotTrain
from training.learners.super_resolution.dataset import EvaluationImages, TrainingCrops, read_sharp_folder
from training.learners.super_resolution.degradation import CropSampler, DegradationParams


def read(folder, **options):
    return read_sharp_folder(folder, **{"unreadable": "refuse", "valid_fraction": 0.25, "min_side": 64} | options)


def test_images_are_found_at_any_depth_and_the_split_does_not_depend_on_the_location(sharp_folder, tmp_path):
    folder = sharp_folder(*(f"{n % 3}/{n}.png" for n in range(16)))
    shutil.copytree(folder, tmp_path / "moved")

    here, moved = read(folder), read(tmp_path / "moved")

    assert (len(here.train), len(here.validation)) == (12, 4)
    assert [path.name for path in here.validation] == [path.name for path in moved.validation]


def test_small_images_are_left_out_with_a_warning(sharp_folder):
    sharp_folder("small.png", size=(200, 63))
    folder = sharp_folder("a.png", "b.png", "c.png", seed=5)

    data = read(folder)

    assert data.warnings == ("1 of 4 images skipped: they have a side of fewer than 64 pixels.",)
    assert len(data.train) + len(data.validation) == 3


def test_folders_of_test_sets_are_not_trained_on_and_copies_of_test_images_are_left_out(sharp_folder):
    sharp_folder(*(f"train/{n}.jpg" for n in range(6)))
    folder = sharp_folder("test/Set5/x.png", "test/Set14/y.png", seed=50)
    draw_scene(seed=50).save(folder / "train" / "copy.png")

    data = read(folder)

    assert {name: [path.name for path in paths] for name, paths in data.tests.items()} == {
        "Set14": ["y.png"],
        "Set5": ["x.png"],
    }
    assert len(data.train) + len(data.validation) == 6
    assert data.warnings == ("1 images left out: they are copies of test images.",)


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "is not a folder"), (("a.png",), "At least two are needed"), (("a.txt",), "No images")],
)
def test_unusable_folder_is_refused_with_a_message(sharp_folder, tmp_path, names, message):
    if names == ("a.txt",):
        (tmp_path / "sharp").mkdir()
        (tmp_path / "sharp" / "a.txt").write_text("not an image")
    else:
        sharp_folder(*names)

    with pytest.raises(CannotTrain, match=message):
        read(tmp_path / "sharp")


def test_unreadable_image_is_refused_or_skipped(sharp_folder):
    folder = sharp_folder("a.png", "b.png", "c.png")
    (folder / "broken.png").write_bytes(b"not an image")

    with pytest.raises(CannotTrain, match=r"broken\.png cannot be read"):
        read(folder)
    assert "broken.png skipped" in read(folder, unreadable="skip").warnings[0]


def test_every_format_of_the_service_is_read_and_other_files_are_counted(sharp_folder):
    folder = sharp_folder("a.png", "b.tif", "c.gif", "d.jpg")
    (folder / "d.jpg").rename(folder / "d.JFIF")
    (folder / "film.mp4").write_bytes(b"x")
    (folder / "@eaDir").mkdir()
    draw_scene(seed=70).save(folder / "@eaDir" / "thumb.png")

    data = read(folder)

    assert len(data.train) + len(data.validation) == 4
    assert data.warnings == (
        "2 files were left out: 1 ending in .mp4, 1 in folders that other programs made (@eaDir).",
    )


def test_small_photos_in_heic_are_left_out_too(sharp_folder):
    pillow_heif = pytest.importorskip("pillow_heif")
    folder = sharp_folder("a.png", "b.png", "c.png")
    pillow_heif.from_pillow(draw_scene(120, 40, seed=9)).save(folder / "small.heic")

    assert read(folder).warnings == ("1 of 4 images skipped: they have a side of fewer than 64 pixels.",)


def test_images_directly_in_the_test_folder_are_a_test_set_and_unread_folders_are_named(sharp_folder):
    sharp_folder(*(f"Train/{n}.png" for n in range(4)))
    folder = sharp_folder("test/x.png", "valid/y.png", seed=50)
    (folder / "test" / "Set5").mkdir()

    data = read(folder)

    assert {name: [path.name for path in paths] for name, paths in data.tests.items()} == {"test": ["x.png"]}
    assert data.warnings == ("Nothing was read from the folders valid, test/Set5.",)


def load_crops(folder, **options):
    paths = sorted(folder.glob("*.png"))
    settings = {"crops_per_image": 3, "pixel_epochs": 2, "max_side": 1000, "seed": 1} | options
    return TrainingCrops(paths, CropSampler(32, 2, DegradationParams()), **settings)


def test_sample_depends_only_on_seed_and_key_and_differs_between_epochs(sharp_folder):
    folder = sharp_folder("a.png", "b.png")
    samples, cached = load_crops(folder), load_crops(folder)
    cached.fill_cache()
    torch.rand(17)

    batch, same = samples.__getitems__([(0, 1), (0, 3)]), cached.__getitems__([(0, 1), (0, 3)])

    assert len(samples) == 6
    assert all(torch.equal(batch[name], same[name]) for name in batch)
    assert not torch.equal(batch["image"][0], batch["image"][1])
    assert not torch.equal(batch["image"], cached.__getitems__([(1, 1), (1, 3)])["image"])


def test_perceptual_loss_starts_at_the_configured_epoch(sharp_folder):
    samples = load_crops(sharp_folder("a.png", "b.png"))

    assert [bool(samples.sample((epoch, 0))["perceptual"]) for epoch in range(4)] == [False, False, True, True]


def test_degradation_of_an_evaluation_image_depends_only_on_its_name(sharp_folder):
    folder = sharp_folder("a.png", "b.png")
    both, alone = (
        EvaluationImages(paths, 2, DegradationParams(), max_side=1000)
        for paths in (sorted(folder.glob("*")), [folder / "b.png"])
    )

    assert np.array_equal(both.degraded_pair(1)[0].pixels, alone.degraded_pair(0)[0].pixels)
    assert not np.array_equal(both.degraded_pair(0)[0].text_mask, alone.degraded_pair(0)[0].text_mask)


def test_large_image_is_downscaled_first(sharp_folder):
    samples = load_crops(sharp_folder("a.png", size=(300, 150)), max_side=100)

    assert samples.image(0).image.size == (100, 50)
