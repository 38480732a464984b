"""Heads, losses, figures and calibration of points, and the whole way from a folder to a published model."""

import csv
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.keypoints import Keypoints
from tasks.manifest import read_manifest, verify_files
from tests.training.conftest import ROOT
from training.__main__ import main
from training.core.errors import CannotTrain
from training.data.download import Fetcher
from training.learners.keypoints import metrics
from training.learners.keypoints.network import (
    HEADS,
    FlipTTA,
    HeatMaps,
    Nearness,
    ServedKeypoints,
    keypoint_loss,
    keypoint_network,
    spoken_probability,
)
from training.learners.keypoints.skeleton import pair_of, pairs_of, twins_of
from training.publishing import export
from training.publishing.publish import replay
from training.registry import learner_type, load_recipe
from training.vision.backbones import load_body

SHARED = ROOT.parent / "shared" / "data"
SIZE = 64


def network(head, points=3):
    torch.manual_seed(0)
    return keypoint_network(load_body("shufflenet_v2_x0_5", None), head, points=points, size=SIZE, dropout=0.0)


def pixels(count=2):
    return torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", HEADS)
def test_each_head_says_points_near_the_square_with_a_bounded_spread(head):
    made = network(head).eval()

    with torch.no_grad():
        points, spread, *_ = made(pixels())

    assert points.shape == (2, 3, 2)
    assert spread.shape == (2, 3)
    assert (points >= -0.1 * SIZE).all()
    assert (points <= 1.1 * SIZE).all()
    assert (spread > 0).all()
    assert (spread < SIZE).all()


@pytest.mark.parametrize("head", HEADS)
def test_points_are_float32_also_where_bfloat16_is_used(head):
    made = network(head).eval()

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        points, spread, *_ = made(pixels())

    assert (points.dtype, spread.dtype) == (torch.float32, torch.float32)


@settings(max_examples=30)
@given(st.floats(0.2, 0.8), st.floats(0.2, 0.8))
def test_the_centre_of_mass_of_a_narrow_bell_is_its_middle(x, y):
    head = HeatMaps(1, 1, 128)
    with torch.no_grad():
        head.maps.weight.fill_(1.0)
        head.maps.bias.zero_()
        cells = (torch.arange(32) + 0.5) * 4
        bell = -((cells - x * 128) ** 2)[None, :] / 50 - ((cells - y * 128) ** 2)[:, None] / 50

        points, spread, logarithms = head(bell[None, None])

    assert points[0, 0].tolist() == pytest.approx([x * 128, y * 128], abs=0.05)
    assert float(spread) == pytest.approx(5.0, rel=0.1)
    assert float(logarithms.exp().sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_missing_points_change_neither_loss_nor_gradient(head):
    made, image = network(head).eval(), pixels()
    target = torch.tensor([[[10.0, 20], [30, 40], [50, 60]]] * 2)
    holed = target.clone()
    holed[0, 1] = torch.nan
    gradients = []

    for moved in (0.0, 9.0):
        given_target = holed.clone()
        given_target[0, 1, 0] = moved if moved else torch.nan  # One coordinate of two counts as none.
        loss = keypoint_loss(made(image), given_target, SIZE)
        gradients.append((float(loss.detach()), torch.autograd.grad(loss, list(made.head.parameters()))))

    assert gradients[0][0] == gradients[1][0] != float(keypoint_loss(made(image), target, SIZE).detach())
    assert all(torch.equal(one, other) for one, other in zip(gradients[0][1], gradients[1][1], strict=True))
    assert all(gradient.isfinite().all() for gradient in gradients[0][1])


@pytest.mark.parametrize("head", HEADS)
def test_a_picture_without_any_point_teaches_nothing_and_breaks_nothing(head):
    loss = keypoint_loss(network(head)(pixels()), torch.full((2, 3, 2), torch.nan), SIZE)

    assert float(loss.detach()) == 0


@pytest.mark.parametrize("head", HEADS)
def test_a_few_steps_bring_the_points_closer(head):
    made = network(head).train()
    image, target = pixels(4), torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(2)) * SIZE
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    losses = []

    for _ in range(25):
        loss = keypoint_loss(made(image), target, SIZE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    assert losses[-1] < 0.8 * losses[0]


def test_near_is_a_share_of_two_points_distance_or_of_the_box_around_all():
    points = torch.tensor([[[0.0, 0.0], [30.0, 40.0], [30.0, 0.0]]])
    spread = torch.full((1, 3), 2.0)

    between, around = Nearness((0, 2), 0.1)(points, spread), Nearness(None, 0.1)(points, spread)

    assert between.exp()[0, 0].item() == pytest.approx(3.0 / 2, rel=1e-3)
    assert around.exp()[0, 0].item() == pytest.approx(5.0 / 2, rel=1e-3)


def test_a_picture_and_its_mirror_image_have_mirrored_answers():
    made = FlipTTA(network("heatmaps").eval(), (1, 0, 2), SIZE)

    with torch.no_grad():
        points, spread = made(pixels())
        mirrored, other = made(pixels().flip(2))

    assert torch.allclose(points[:, [1, 0, 2], 0], SIZE - mirrored[..., 0], atol=1e-3)
    assert torch.allclose(points[:, [1, 0, 2], 1], mirrored[..., 1], atol=1e-3)
    assert torch.allclose(spread[:, [1, 0, 2]], other, atol=1e-3)


@pytest.mark.parametrize(("head", "between"), [("heatmaps", (0, 2)), ("coordinates", None)])
def test_the_exported_graph_agrees_with_the_network(head, between, tmp_path):
    whole = FlipTTA(network(head).eval(), (1, 0, 2), SIZE)
    served = ServedKeypoints(whole, Nearness(between, 0.05), 1.5, torch.tensor([0.1, -0.2, 0.0])).eval()

    task = Keypoints(("a", "b", "c"), SIZE)
    what = export.Artefacts(fp16=False, torchscript=True)
    parity = export.export(served, task, {"image": pixels(8).numpy()}, tmp_path, what)

    assert parity.largest < export.TOLERANCE
    assert parity.samples == 8


def test_errors_are_relative_and_missing_points_do_not_count():
    marked = np.array([[[0.0, 0.0], [10.0, 0.0]], [[0.0, 0.0], [np.nan, np.nan]], [[5.0, 5.0], [25.0, 5.0]]])
    sizes = metrics.sizes_of(list(marked), (0, 1), [1] * 3)

    errors = metrics.relative_errors(marked + np.array([1.0, 0.0]), marked, sizes)

    assert sizes.tolist() == pytest.approx([10.0, np.nan, 20.0], nan_ok=True)
    assert errors[0].tolist() == pytest.approx([0.1, 0.1])
    assert metrics.mean_error(errors) == pytest.approx((0.1 + 0.05) / 2)
    assert metrics.share_within(errors, 0.07) == 0.5


def test_the_size_of_one_point_alone_is_the_pictures():
    assert metrics.sizes_of([np.array([[3.0, 4.0]])], None, [200]).tolist() == [200.0]
    assert metrics.sizes_of([np.array([[0.0, 0.0], [3.0, 4.0]])], None, [200]).tolist() == [5.0]


def test_calibration_brings_confidence_to_what_is_seen_also_on_other_groups():
    generator = torch.Generator().manual_seed(0)
    nearness = torch.randn(600, 5, generator=generator)
    chance = (2.0 * nearness + torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])).sigmoid()
    right = torch.rand(600, 5, generator=generator) < chance
    known = torch.ones_like(right)
    known[::7, 2] = False
    groups = [str(i % 30) for i in range(600)]

    fit = metrics.calibrated(nearness, right, known)
    apart = metrics.cross_fitted(nearness, right, known, groups)

    assert fit.slope == pytest.approx(2.0, abs=0.4)
    assert fit.offsets.tolist() == pytest.approx([-2, -1, 0, 1, 2], abs=0.5)
    seen, mask = right.numpy()[known.numpy()], known.numpy()
    before = metrics.calibration_error(spoken_probability(nearness).numpy()[mask], seen)
    assert metrics.calibration_error(apart.numpy()[mask], seen) < 0.04 < before


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_answers_that_are_all_right_or_all_wrong_leave_the_logistic_finite(share):
    nearness = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    right = torch.full((40, 3), share > 0.5)

    fit = metrics.calibrated(nearness, right, torch.ones_like(right))

    assert fit.offsets.isfinite().all()
    assert math.isfinite(fit.slope)
    assert abs(float(fit.probabilities(nearness).mean()) - share) < 0.1


def test_the_interval_is_around_the_mean_and_narrower_with_more_people():
    errors = np.random.default_rng(0).uniform(0, 0.1, (400, 4))

    few = metrics.interval(errors, [str(i % 5) for i in range(400)])
    many = metrics.interval(errors, [str(i) for i in range(400)])

    assert many[0] < metrics.mean_error(errors) < many[1]
    assert few[1] > few[0]


def test_people_are_numbered_and_not_named():
    errors = np.array([[0.3, 0.3], [0.1, 0.1], [0.2, np.nan], [np.nan, np.nan]])

    table = metrics.by_group(errors, ["Ann", "Bob", "Cid", "Dee"], "person")

    assert [row[0] for row in table.rows] == ["1 of 3", "2 of 3", "3 of 3"]
    assert [row[2] for row in table.rows] == ["30.0%", "20.0%", "10.0%"]
    assert not any(name in str(table) for name in ("Ann", "Bob", "Cid", "Dee"))


def test_points_are_grouped_by_their_names_without_numbers():
    table = metrics.by_part(np.array([[0.1, 0.3, 0.02]]), ["eye_1", "eye_2", "nose"])

    assert [row[:3] for row in table.rows] == [("eye", "2", "20.0%"), ("nose", "1", "2.0%")]


def test_twins_are_told_by_left_and_right_or_named():
    names = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")

    assert twins_of(names, ()) == (1, 0, 2, 4, 3)
    assert twins_of(("a", "b", "c"), ("a=c",)) == (2, 1, 0)
    assert twins_of(("a", "b", "left_c"), ()) == ()


def test_names_that_are_no_points_are_mistakes():
    names = ("a", "b", "c")

    for pairs, sentence in ((("a=d",), "--twins a=d"), (("ab",), "--twins ab"), (("a=b", "b=c"), "has a twin already")):
        with pytest.raises(CannotTrain, match=sentence):
            twins_of(names, pairs)
    with pytest.raises(CannotTrain, match="--links a=x: it needs the names of two points"):
        pairs_of(names, ("a=x",), "links")
    for pair in (("a",), ("a", "x"), ("a", "a"), ("a", "b", "c")):
        with pytest.raises(CannotTrain, match="--between"):
            pair_of(names, pair)
    assert pair_of(names, ("c", "a")) == (2, 0)


def test_the_68_points_of_a_face_are_each_others_twins():
    options = load_recipe("faces").options
    names = options.names

    twins = twins_of(names, options.twins)

    assert len(names) == 68
    assert [twins[twin] for twin in twins] == list(range(68))
    assert [names[i] for i, twin in enumerate(twins) if twin == i] == [
        *("jaw_9", "nose_bridge_1", "nose_bridge_2", "nose_bridge_3", "nose_bridge_4", "nose_base_3"),
        *("outer_lip_4", "outer_lip_10", "inner_lip_3", "inner_lip_7"),
    ]
    assert pair_of(names, options.between) == (36, 45)
    assert twins[36] == 45
    assert len(pairs_of(names, options.links, "links")) == 63


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not in ../shared/data")
def test_faces_are_split_by_person_and_look_alike_in_a_mirror(tmp_path):
    found = load_recipe("faces")
    fetcher = Fetcher(tmp_path, str(SHARED), lambda text: None)

    learner = learner_type(found.task).from_data(fetcher.fetch(found.source), found.settings, found.options, fetcher)

    person = re.compile(found.options.group_pattern)
    train, validation = (
        {person.match(path.name)[1] for path in each.paths} for each in (learner.samples, learner.held_out)
    )
    assert not train & validation
    assert (len(train), len(validation)) == (266, 67)
    assert len(learner.samples) + len(learner.held_out) == 4057
    marked = np.stack(learner.samples.points)
    marked = marked[~np.isnan(marked).any(axis=(1, 2))]
    mean = (marked - marked.mean(axis=1, keepdims=True)).mean(axis=0)
    mirrored = (mean * (-1, 1))[list(learner.twins)]
    assert np.abs(mean - mirrored).max() < 0.1 * np.ptp(mean[:, 0])


NAMES = ("left", "right", "top")
COLOURS = ((230, 40, 40), (40, 220, 60), (60, 80, 240))


def dots(seed, side=72):
    """A grey picture with three dots, and where they are."""
    random = np.random.default_rng(seed)
    middle = random.uniform(0.4, 0.6, 2) * side
    points = middle + np.array([[-14.0, 6.0], [14.0, 6.0], [0.0, -14.0]]) * random.uniform(0.8, 1.1)
    image = np.full((side, side, 3), random.uniform(90, 160)) + random.normal(0, 6, (side, side, 3))
    y, x = np.mgrid[:side, :side] + 0.5
    for point, colour in zip(points, COLOURS, strict=True):
        image[np.hypot(x - point[0], y - point[1]) < 5] = colour
    return Image.fromarray(image.clip(0, 255).astype(np.uint8)), points


@pytest.fixture
def dotted(tmp_path):
    """A folder of pictures with dots and their table; some points are missing."""
    folder = tmp_path / "dots"
    folder.mkdir()
    rows = [("file", *(f"{name}_{axis}" for name in NAMES for axis in "xy"), "film")]
    for i in range(64):
        image, points = dots(i)
        image.save(folder / f"{i:02}.png")
        cells = [f"{value:.2f}" for value in points.flatten()]
        rows.append((f"{i:02}.png", *(["", "", *cells[2:]] if i % 9 == 0 else cells), i // 4))
    with (folder / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


PLACES = ("runs", "models", "data-dir")
QUICK = (
    *("--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--size", "64", "--batch-size", "8"),
    *("--device", "cpu", "--precision", "fp32", "--rate", "0.01", "--rotation", "5", "--largest", "1.1"),
)


@pytest.fixture
def train(tmp_path, capsys):
    def run(*arguments):
        places = [word for name in PLACES for word in (f"--{name}", tmp_path / name)]
        status = main([str(word) for word in (*arguments, *places)])
        caught = capsys.readouterr()
        return status, caught.out, caught.err

    return run


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_pictures_with_points_become_a_report_and_a_model_that_finds_them(train, dotted, tmp_path, head):
    arguments = ("keypoints", "--data", dotted, "--name", "dots", "--head", head, "--epochs", "8", *QUICK)
    named = ("--group-column", "film", "--between", "left,right", "--links", "left=right,right=top", "--tta")

    status, out, err = train(*arguments, *named, "--publish")

    assert status == 0, err
    model = tmp_path / "models" / "dots" / "1"
    manifest = read_manifest(model)
    verify_files(model, manifest)
    replay(model)
    task = manifest.load_task(model)
    assert (task.names, task.links) == (NAMES, ((0, 1), (1, 2)))
    figures = {metric.name: metric.value for metric in manifest.metrics}
    assert list(figures)[:3] == ["mean_error", "median_error", "pck_5"]
    assert figures["mean_error"] < 0.5
    image, points = dots(1000)
    image.save(tmp_path / "new.png")
    run = export.onnx_runner(model / "model.onnx", task)
    answer = task.answer(run, {"image": (tmp_path / "new.png").read_bytes(), "overlay": True})
    assert (answer.width, answer.height) == (72, 72)
    assert answer.overlay is not None
    got = np.array([[point.x, point.y] for point in answer.points])
    assert np.abs(got - points).max() < 20
    card = (model / "README.md").read_text()
    for needed in ("By part", "By group", "By how far it is turned away", "bootstrap over groups", "Known failures"):
        assert needed in card
    (report,) = (tmp_path / "runs" / "dots").rglob("index.html")
    page = report.read_text()
    for needed in ("The largest errors", "Typical answers", "Cumulative error", "Reliability", "as it is seen in"):
        assert needed in page
    assert re.search(r"3 points; \d+ pictures to train on", out)


@pytest.mark.slow
def test_data_that_may_be_passed_on_gives_goldens_of_its_own(dotted):
    learner_class = learner_type("keypoints")
    options = replace(
        learner_class.default_options, backbone="shufflenet_v2_x0_5", weights="none", size=64, group_column="film"
    )
    learner = learner_class.from_data(dotted, learner_class.default_settings, options, Fetcher(dotted))
    torch.manual_seed(0)
    served = learner.to_inference_module(learner.network())

    task, bodies = learner.golden_requests(served)

    assert task == learner.task
    assert [body.get("overlay", False) for body in bodies] == [False, True, False]


def test_mistakes_with_points_are_one_sentence_and_status_2(train, dotted):
    mistakes = [
        (("--between", "left,nose"), "--between left,nose: it needs two points"),
        (("--twins", "left=nose"), "--twins left=nose: it needs the names of two points"),
        (("--links", "left"), "--links left"),
        (("--tta", "--twins", "left=right,right=left"), "has a twin already"),
        (("--group-column", "person"), "no column 'person'"),
        (("--tables", "other.csv"), "holds 0 files 'other.csv'"),
        (("--group-column", "film", "--names", "a,b"), "--names names 2"),
        ((), "has 7 columns of coordinates"),
    ]
    for arguments, sentence in mistakes:
        more = () if any("column" in word for word in (*arguments, sentence)) else ("--group-column", "film")
        status, _, err = train("keypoints", "--data", dotted, *QUICK, *arguments, *more)

        said = err.strip().splitlines()[-1]
        assert (status, said.startswith("training: "), sentence in said) == (2, True, True), (arguments, err)
        assert "Traceback" not in err
