import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks._images import Frame, Picture
from tasks.contract import Limits
from tasks.manifest import read_goldens, read_manifest
from tasks.segmentation import Segmentation
from training import export
from training.__main__ import main
from training.errors import CannotTrain
from training.learners.segmentation import Options, SegmentationLearner, _dice, _weights
from training.masks import IGNORED, MaskedPictures, read_masks, seen_of
from training.networks.bodies import body
from training.networks.segmentation import Segmenter, ServedSegmenter
from training.publish import replay
from training.segmentation_findings import Evidence, class_ious, class_mean_iou, confusions, findings
from training.settings import Settings

CODES = "sky\nroad\nVoid\nhouse\n"
PALETTE = {0: (90, 160, 250), 1: (110, 110, 110), 3: (150, 60, 30)}


def scene(seed, size=(48, 36)):
    """A noisy picture of sky, road and a house, and its mask; two columns at the right are void."""
    random = np.random.default_rng(seed)
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    horizon, left = int(random.integers(height // 3, height // 2)), int(random.integers(2, width // 2))
    mask[horizon:] = 1
    mask[horizon // 2 : horizon + 2, left : left + width // 3] = 3
    pixels = np.zeros((height, width, 3))
    for label, colour in PALETTE.items():
        pixels[mask == label] = colour
    pixels += random.normal(0, 15, pixels.shape)
    mask[:, -2:] = 2
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), Image.fromarray(mask)


@pytest.fixture
def streets(tmp_path):
    """Makes folders of pictures and masks, by default `images` and `masks` with codes.txt."""

    def make(count=8, pictures="images", masks="masks", first=0, codes=CODES, root="streets", size=(48, 36)):
        folder = tmp_path / root
        (folder / pictures).mkdir(parents=True, exist_ok=True)
        (folder / masks).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            picture, mask = scene(i, size)
            picture.save(folder / pictures / f"{i:03}.jpg", quality=95)
            mask.save(folder / masks / f"{i:03}.png")
        if codes:
            (folder / "codes.txt").write_text(codes)
        return folder

    return make


def read(folder, **more):
    return read_masks(folder, **{"unreadable": "refuse", "valid_share": 0.25, "size": 48} | more)


def test_images_and_masks_become_pairs_with_the_labels_of_the_codes_and_void_left_out(streets):
    found = read(streets())

    assert found.classes.labels == ("sky", "road", "house")
    assert found.classes.index[[0, 1, 2, 3, 255]].tolist() == [0, 1, IGNORED, 2, IGNORED]
    assert (len(found.train), len(found.validation)) == (6, 2)
    assert all(pair.picture.stem == pair.mask.stem for pair in found.train)


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (("train", "trainannot"), ("val", "valannot")),
        (("images/train", "masks/train"), ("images/valid", "masks/valid")),
        (("train/images", "train/masks"), ("val/images", "val/masks")),
    ],
    ids=["SegNet", "images first", "split first"],
)
def test_every_layout_with_a_split_is_kept_as_it_is(streets, train, validation):
    streets(5, *train)
    folder = streets(3, *validation, first=100)

    found = read(folder)

    assert (len(found.train), len(found.validation)) == (5, 3)
    assert {pair.picture.stem for pair in found.validation} == {"100", "101", "102"}


def test_the_folder_inside_an_unpacked_archive_is_found(streets, tmp_path):
    streets(4, "train", "trainannot", root="outer/repository/CamVid")
    streets(2, "val", "valannot", root="outer/repository/CamVid", first=50)

    assert len(read(tmp_path / "outer").train) == 4


def test_training_pictures_that_are_copies_of_validation_pictures_are_left_out(streets):
    streets(5, "train", "trainannot")
    folder = streets(2, "val", "valannot", first=4)

    found = read(folder)

    assert len(found.train) == 4
    assert "1 training pictures left out" in found.notices[0]


def test_without_codes_the_labels_are_given_or_are_the_indices(streets):
    folder = streets(codes="")

    assert read(folder).classes.labels == ("class 0", "class 1", "class 2", "class 3")
    assert read(folder, labels=("a", "b", "void", "d")).classes.labels == ("a", "b", "d")
    assert read(folder, void=2).classes.labels == ("class 0", "class 1", "class 3")


def test_the_colours_of_palette_masks_are_taken_over(streets):
    folder = streets()
    for path in (folder / "masks").glob("*.png"):
        mask = Image.open(path).convert("L")
        mask.putpalette([1, 2, 3, 40, 50, 60, 0, 0, 0, 70, 80, 90])
        mask.save(path)

    assert read(folder).classes.colours == ((1, 2, 3), (40, 50, 60), (70, 80, 90))
    assert read(folder).classes.labels == ("sky", "road", "house")


def larger_mask(folder):
    Image.new("L", (50, 36)).save(folder / "masks" / "003.png")


def no_mask(folder):
    (folder / "masks" / "003.png").unlink()


def no_picture(folder):
    (folder / "images" / "003.jpg").unlink()


def unknown_index(folder):
    Image.new("L", (48, 36), 9).save(folder / "masks" / "003.png")


def coloured_mask(folder):
    Image.new("RGB", (48, 36)).save(folder / "masks" / "003.png")


def broken_mask(folder):
    (folder / "masks" / "003.png").write_bytes(b"this is no picture")


def broken_picture(folder):
    (folder / "images" / "003.jpg").write_bytes(b"this is no picture")


def no_folders(folder):
    shutil.rmtree(folder / "masks")


def one_class(folder):
    for path in (folder / "masks").glob("*"):
        Image.new("L", (48, 36), 0).save(path)


def doubled_label(folder):
    (folder / "codes.txt").write_text("sky\nroad\nVoid\nsky\n")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (larger_mask, r"003\.jpg has 48×36 pixels and its mask .*003\.png 50×36"),
        (no_mask, r"003\.jpg has no mask of the same name"),
        (no_picture, r"003\.png has no picture of the same name"),
        (unknown_index, r"003\.png has pixels of the index 9, and there are 4 labels.*--void 9"),
        (coloured_mask, r"003\.png is a picture of mode RGB: a mask is a PNG of one channel"),
        (broken_mask, r"The mask .*003\.png cannot be read"),
        (broken_picture, r"003\.jpg cannot be read.*--unreadable skip"),
        (no_folders, "neither the folders 'images' and 'masks' nor 'train' and 'trainannot'"),
        (one_class, "fewer than two classes"),
        (doubled_label, "'sky' stands twice"),
    ],
)
def test_wrong_data_is_named_in_one_sentence(streets, spoil, sentence):
    folder = streets()
    spoil(folder)

    with pytest.raises(CannotTrain, match=sentence):
        read(folder)


def test_nothing_to_read_is_said_so(streets, tmp_path):
    (tmp_path / "none" / "images").mkdir(parents=True)
    (tmp_path / "none" / "masks").mkdir()

    with pytest.raises(CannotTrain, match="no pictures"):
        read(tmp_path / "none")
    with pytest.raises(CannotTrain, match="is not a folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(CannotTrain, match="one picture only"):
        read(streets(1))


def pictures(folder, **more):
    found = read(folder)
    task = Segmentation(found.classes.labels, 48, 36)
    return MaskedPictures(found.train, found.classes, task, **more)


def test_a_validation_sample_is_what_the_service_makes_of_the_file_with_its_mask(streets):
    made = pictures(streets())

    batch = made.__getitems__([(0, 2)])

    request = made.task.parse({"image": made.paths[2].read_bytes()}, Limits())
    served = made.task.preprocess(made.task.decode(request, Limits())).arrays["image"]
    assert torch.equal(batch["image"], torch.from_numpy(served.copy()))
    assert np.array_equal(batch["target"][0], made.mask(2))
    assert (batch["target"][0, :, -2:] == IGNORED).all()


def test_a_panorama_is_validated_in_its_windows(streets):
    made = pictures(streets(size=(480, 36)))

    batch = made.__getitems__([(0, index) for index in range(len(made))])

    assert len(made) == len(made.pairs) * len(made.task.windows(480, 36)[1])
    assert batch["target"].shape == (len(made), 36, 48)
    assert torch.equal(batch["target"][0], torch.from_numpy(made.mask(0)[:, :48]))


def matching(batch):
    """Share of the pixels with a label whose colour is nearest to that label's."""
    colours = torch.tensor(list(PALETTE.values()), dtype=torch.float)
    said = torch.cdist(batch["image"].float().flatten(0, 2), colours).argmin(dim=1)
    target = batch["target"].flatten()
    return (said == target)[target != IGNORED].float().mean()


@pytest.mark.parametrize("crop", [(32, 24), (64, 64)], ids=["smaller", "larger than the picture"])
def test_picture_and_mask_are_changed_together(streets, crop):
    made = pictures(streets(), crop=crop, seed=5)

    batch = made.__getitems__([(epoch, index) for epoch in range(4) for index in range(len(made))])

    assert batch["image"].shape[1:] == (crop[1], crop[0], 3)
    assert matching(batch) > 0.93
    assert len({tuple(target.flatten().tolist()) for target in batch["target"]}) > len(made)


def test_changes_follow_from_seed_epoch_and_picture_alone(streets):
    made = pictures(streets(), crop=(32, 24), seed=5)
    keys = [(0, 1), (0, 2)]

    torch.manual_seed(1)
    first = made.__getitems__(keys)
    torch.manual_seed(2)
    second = made.__getitems__(keys)

    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["target"], second["target"])
    assert not torch.equal(first["image"], made.__getitems__([(1, 1), (1, 2)])["image"])


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_mask_of_any_size_is_seen_where_its_picture_lies(width, height):
    task = Segmentation(("a", "b"), 32, 24)
    mask = np.zeros((height, width), np.uint8)
    samples = task.preprocess(Picture(Image.new("RGB", (width, height)), width, height))

    seen = seen_of(mask, samples.context.frames[0], 32, 24)

    assert seen.shape == (24, 32)
    assert (seen == 0).any()
    assert set(np.unique(seen)) <= {0, IGNORED}


def test_what_lies_beside_the_picture_has_no_label():
    seen = seen_of(np.ones((10, 10), np.uint8), Frame(10, 10, 1.0, 1.0, 3.0, 0.0), 16, 10)

    assert (seen[:, 3:13] == 1).all()
    assert (seen[:, :3] == IGNORED).all()
    assert (seen[:, 13:] == IGNORED).all()


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
    network = Segmenter(body("resnet18", None), 3, fine=fine, dropout=0.0).eval()

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
    task = manifest.load_task()
    assert task.labels == ("sky", "road", "house")
    picture, _ = scene(1000, (96, 72))
    picture.save(tmp_path / "new.png")
    body = {"image": (tmp_path / "new.png").read_bytes()}
    answer = task.answer(export.runner(model / "model.onnx", task), body)
    assert (answer.width, answer.height) == (96, 72)
    assert sum(entry.share for entry in answer.classes) == pytest.approx(1, abs=1e-4)
    assert {golden.request.get("mask") for golden in read_goldens(model)} == {None, "rle", "polygons", "none"}
    card = (model / "README.md").read_text()
    assert re.search(r"mask: [\d.]+% of its elements", card)
    assert "The batch a sample is in" in card
    (report,) = (tmp_path / "runs" / "streets").rglob("index.html")
    assert "Worst masks" in report.read_text()
    assert json.loads((model / "manifest.json").read_text())["parameters"]["scene"] >= 0
