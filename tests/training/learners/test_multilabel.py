"""Pictures with several labels: tables of tags, thresholds, and the way from a folder to a model."""

import csv

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.classification import Classification
from tasks.manifest import read_manifest
from training.core.config import Settings
from training.core.errors import CannotTrain
from training.learners.classification.label_csv import read_tags, table_file
from training.learners.classification.learner import ClassificationLearner
from training.learners.classification.multilabel_metrics import best_thresholds, crossed, f_score, majority, tag_metrics
from training.publishing.publish import replay
from training.recipes.cards import copy_tagged_images
from training.recipes.scenes import LABELS, write_tiles
from training.registry import load_recipe


def tagged_folder(folder, rows, columns=("image_name", "tags")):
    """Writes labels.csv, and for each row a picture: its left half bright if `left`, its right half if `right`."""
    (folder / "pictures").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, tags, *_ in rows:
        pixels = generator.normal(60, 20, (32, 40, 3))
        pixels[:, :20] += 150 * ("left" in tags.split())
        pixels[:, 20:] += 150 * ("right" in tags.split())
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "pictures" / f"{name}.png")
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return folder


def some_rows(count=24):
    kinds = ("left", "right", "left right", "")
    return [(f"p{i:02}", kinds[i % 4]) for i in range(count)]


def read(folder, **more):
    return read_tags(table_file(folder), **{"unreadable": "refuse", "valid_fraction": 0.25, "size": 32} | more)


def test_the_layout_of_planet_is_read_and_each_tag_is_on_both_sides(tmp_path):
    table = read(tagged_folder(tmp_path / "planet", some_rows()))

    assert table.labels == ("left", "right")
    assert len(table.train) + len(table.validation) == 24
    assert table.targets(table.validation).sum(dim=0).min() >= 1
    assert table.targets(table.train).sum(dim=0).min() >= 1


def test_a_column_may_say_which_pictures_validate(tmp_path):
    rows = [(name, tags, "valid" if i < 6 else "train") for i, (name, tags) in enumerate(some_rows())]

    table = read(tagged_folder(tmp_path / "planet", rows, ("image_name", "tags", "split")))

    assert [picture.path.stem for picture in table.validation] == [f"p{i:02}" for i in range(6)]
    assert "column" in table.split


def test_names_with_and_without_ending_and_in_the_only_folder_of_an_archive_are_found(tmp_path):
    folder = tagged_folder(tmp_path / "unpacked" / "planet", some_rows())
    text = (folder / "labels.csv").read_text().replace("p03,", "p03.png,").replace("p04,", "pictures/p04.png,")
    (folder / "labels.csv").write_text(text)

    table = read(tmp_path / "unpacked")

    assert len(table.train) + len(table.validation) == 24


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,tags\np00,left\n", "no column image_name; its columns are image, tags"),
        ("image_name,tags\n", "has no rows"),
        ("image_name,tags\np00,left\nghost,left\n", "line 3: there is no picture 'ghost'"),
        ("image_name,tags\np00,left\np00,right\n", "line 3: p00 was named before, in line 2"),
        ("image_name,tags\np00,\np01,\n", "gives no picture a tag"),
        ("image_name,tags,split\np00,left,train\np01,left,\n", "is empty for some pictures"),
        ("image_name,tags,split\np00,left,test\n", "'train' or 'validation', not 'test'"),
        ("image_name,tags,split\np00,left,train\np01,left,train\n", "no pictures to validate with"),
        ("image_name,tags\np00,left\np00.png,right\n", "line 3: p00.png is the picture of line 2 once more"),
        ("image_name,tags,split\np00,left,train\np01,,valid\n", "that is to validate has a tag"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_one_sentence(tmp_path, text, sentence):
    folder = tagged_folder(tmp_path / "planet", some_rows())
    (folder / "labels.csv").write_text(text)

    with pytest.raises(CannotTrain, match=sentence):
        read(folder)


def test_a_table_in_another_encoding_is_said_to_be_one(tmp_path):
    folder = tagged_folder(tmp_path / "planet", some_rows())
    (folder / "labels.csv").write_bytes("image_name,tags\np00,f\xe4hre\n".encode("latin-1"))

    with pytest.raises(CannotTrain, match="is not UTF-8"):
        read(folder)


def test_a_name_that_fits_two_pictures_is_refused_and_a_path_is_not(tmp_path):
    folder = tagged_folder(tmp_path / "planet", some_rows())
    (folder / "more").mkdir()
    Image.new("RGB", (40, 32), "teal").save(folder / "more" / "p00.png")

    with pytest.raises(CannotTrain, match="p00 may be any of several pictures"):
        read(folder)
    text = (folder / "labels.csv").read_text().replace("p00,", "pictures/p00.png,")
    (folder / "labels.csv").write_text(text + "more/p00.png,left right\n")
    table = read(folder)

    assert len(table.train) + len(table.validation) == 25


def test_a_tag_that_one_side_never_sees_is_said(tmp_path):
    rows = [(name, tags, "valid" if i < 6 else "train") for i, (name, tags) in enumerate(some_rows())]
    rows[10] = ("p10", "rare", "train")

    table = read(tagged_folder(tmp_path / "planet", rows, ("image_name", "tags", "split")))

    assert table.notices == ("'rare' has no picture to validate with.",)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=40))
def test_no_threshold_has_a_higher_f1_than_the_one_chosen(samples):
    probabilities = np.array([[value / 20] for value, _ in samples])
    targets = np.array([[int(positive)] for _, positive in samples])

    (chosen,) = best_thresholds(probabilities, targets)

    def f1(threshold):
        given = probabilities >= threshold
        return 2 * int((given & (targets == 1)).sum()) / max(1, int(given.sum() + targets.sum()))

    assert f1(chosen) >= max(f1(threshold) for threshold in np.linspace(-0.01, 1.01, 103)) - 1e-9


def test_thresholds_that_others_chose_are_no_better_than_ones_own():
    generator = np.random.default_rng(0)
    targets = (generator.random((60, 3)) < 0.4).astype(int)
    probabilities = (targets * 0.3 + generator.random((60, 3)) * 0.7).clip(0, 1)
    thresholds = best_thresholds(probabilities, targets)

    figures = {m.name: m.value for m in tag_metrics(probabilities, probabilities, targets, thresholds, "60 pictures")}

    assert figures["micro_f1_crossed"] == pytest.approx(f_score(crossed(probabilities, targets), targets))
    assert figures["micro_f1_crossed"] <= figures["micro_f1"]
    assert 0 < figures["f2"] <= 1


def test_the_majority_of_each_label_is_what_training_mostly_says():
    train = np.array([[1, 0], [1, 0], [0, 1]])

    assert majority(train, 2).tolist() == [[True, False], [True, False]]


def test_the_loss_falls_with_the_right_tags_and_mixed_pictures_have_mixed_ones(tmp_path):
    folder = tagged_folder(tmp_path / "planet", some_rows())
    options = ClassificationLearner.default_options
    learner = ClassificationLearner.from_data(
        folder, Settings(), type(options)(weights="none", size=32, mixup=0.4), None
    )
    batch = learner.samples.__getitems__([(0, i) for i in range(8)])

    class Right(torch.nn.Module):
        def forward(self, image):
            return ((batch["target"] * 2 - 1) * 6,)

    class Wrong(torch.nn.Module):
        def forward(self, image):
            return ((1 - batch["target"] * 2) * 6,)

    torch.manual_seed(0)
    assert learner.loss(Right(), batch) < learner.loss(Wrong(), batch)


@pytest.mark.slow
def test_a_table_of_tags_becomes_a_model_that_is_served(tmp_path, command):
    folder = tagged_folder(tmp_path / "planet", some_rows(48))
    flags = ["--weights", "none", "--backbone", "resnet18", "--size", "32", "--epochs", "3", "--no-augment"]

    process = command("classification", "--data", folder, "--name", "halves", *flags, "--publish")
    out, err = process.communicate(timeout=170)

    assert process.returncode == 0, err[-2000:]
    assert "Always answering each label's majority" in out
    published = tmp_path / "models" / "halves" / "1"
    replay(published)
    task = read_manifest(published).load_task(published)
    assert isinstance(task, Classification)
    assert len(task.thresholds) == 2
    assert "f2" in {metric.name for metric in read_manifest(published).metrics}
    (run,) = [path for path in (tmp_path / "runs" / "halves").iterdir() if path.is_dir()]
    assert "Per label" in (run / "index.html").read_text()


def test_a_frame_becomes_six_tiles_tagged_by_what_covers_a_hundredth(tmp_path):
    for part in ("train", "val"):
        (tmp_path / "CamVid" / part).mkdir(parents=True)
        (tmp_path / "CamVid" / f"{part}annot").mkdir()
        mask = np.full((360, 480), LABELS.index("Sky"), np.uint8)
        mask[180:] = LABELS.index("Road")
        mask[0:18, 0:17] = LABELS.index("Pole")  # 306 of a tile's 28,800 pixels: just over a hundredth.
        mask[0:10, 160:180] = LABELS.index("Car")  # 200 of them: less.
        mask[:180, 320:] = 11  # Unlabelled.
        Image.fromarray(mask).save(tmp_path / "CamVid" / f"{part}annot" / "a.png")
        Image.new("RGB", (480, 360), "grey").save(tmp_path / "CamVid" / part / "a.jpg")
    (tmp_path / "tiles").mkdir()

    write_tiles(tmp_path / "CamVid", tmp_path / "tiles")

    rows = list(csv.DictReader((tmp_path / "tiles" / "labels.csv").read_text().splitlines()))
    assert [row["tags"] for row in rows[:6]] == ["Sky Pole", "Sky", "", "Road", "Road", "Road"]
    assert [row["split"] for row in rows] == ["train"] * 6 + ["validation"] * 6
    with Image.open(tmp_path / "tiles" / "train" / "a_0.png") as tile:
        assert tile.size == (160, 180)


def test_boxes_of_the_repository_become_the_tags_of_the_pack(tmp_path):
    images = tmp_path / "repository" / "images"
    (images / "train").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(images / "train" / "IMG_1.JPG", "JPEG")
    rows = "filename,width,height,class,xmin,ymin,xmax,ymax\nIMG_1.JPG,8,8,queen,0,0,2,2\nIMG_1.JPG,8,8,ace,3,3,5,5\n"
    (images / "train_labels.csv").write_text(rows)
    (tmp_path / "made").mkdir()

    copy_tagged_images(tmp_path / "repository", tmp_path / "made")

    assert (tmp_path / "made" / "labels.csv").read_text().splitlines() == ["image_name,tags", "IMG_1,ace queen"]
    assert (tmp_path / "made" / "train" / "IMG_1.JPG").is_file()


def test_scenes_share_their_data_with_the_segmentation_of_the_same_frames():
    assert load_recipe("scenes").source == load_recipe("camvid").source
    assert load_recipe("scenes").data.licence == load_recipe("camvid").data.licence
