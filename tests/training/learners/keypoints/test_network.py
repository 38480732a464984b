import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.keypoints import Keypoints
from training.learners.keypoints.network import (
    HEADS,
    FlipTTA,
    HeatmapHead,
    LogToleranceRatio,
    ServedKeypoints,
    build_keypoint_network,
    keypoint_loss,
)
from training.publishing import export
from training.vision.backbones import load_body

SIZE = 64
BACKBONE = "alexnet"


def build_network(head, points=3):
    torch.manual_seed(0)
    return build_keypoint_network(load_body(BACKBONE, None), head, points=points, size=SIZE, dropout=0.0)


def random_images(count=2):
    return torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", HEADS)
def test_points_lie_near_the_square_and_spreads_are_bounded(head):
    network = build_network(head).eval()

    with torch.no_grad():
        points, spread, *_ = network(random_images())

    assert points.shape == (2, 3, 2)
    assert spread.shape == (2, 3)
    assert (points >= -0.1 * SIZE).all()
    assert (points <= 1.1 * SIZE).all()
    assert (spread > 0).all()
    assert (spread < SIZE).all()


@pytest.mark.parametrize("head", HEADS)
def test_outputs_are_float32_under_bfloat16_autocast(head):
    network = build_network(head).eval()

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        points, spread, *_ = network(random_images())

    assert (points.dtype, spread.dtype) == (torch.float32, torch.float32)


@settings(max_examples=30)
@given(st.floats(0.2, 0.8), st.floats(0.2, 0.8))
def test_centre_of_mass_of_a_gaussian_is_its_mean(x, y):
    head = HeatmapHead(1, 1, 128)
    with torch.no_grad():
        head.maps.weight.fill_(1.0)
        head.maps.bias.zero_()
        cells = (torch.arange(32) + 0.5) * 4
        gaussian = -((cells - x * 128) ** 2)[None, :] / 50 - ((cells - y * 128) ** 2)[:, None] / 50

        points, spread, log_maps = head(gaussian[None, None])

    assert points[0, 0].tolist() == pytest.approx([x * 128, y * 128], abs=0.05)
    assert float(spread) == pytest.approx(5.0, rel=0.1)
    assert float(log_maps.exp().sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_missing_points_change_neither_loss_nor_gradient(head):
    network, image = build_network(head).eval(), random_images()
    target = torch.tensor([[[10.0, 20], [30, 40], [50, 60]]] * 2)
    with_missing = target.clone()
    with_missing[0, 1] = torch.nan
    gradients = []

    for coordinate in (torch.nan, 9.0):
        changed = with_missing.clone()
        changed[0, 1, 0] = coordinate  # A point with only one coordinate counts as missing.
        loss = keypoint_loss(network(image), changed, SIZE)
        gradients.append((float(loss.detach()), torch.autograd.grad(loss, list(network.head.parameters()))))

    assert gradients[0][0] == gradients[1][0] != float(keypoint_loss(network(image), target, SIZE).detach())
    assert all(torch.equal(first, second) for first, second in zip(gradients[0][1], gradients[1][1], strict=True))
    assert all(gradient.isfinite().all() for gradient in gradients[0][1])


@pytest.mark.parametrize("head", HEADS)
def test_batch_without_points_has_loss_zero(head):
    loss = keypoint_loss(build_network(head)(random_images()), torch.full((2, 3, 2), torch.nan), SIZE)

    assert float(loss.detach()) == 0


@pytest.mark.parametrize("head", HEADS)
def test_loss_falls_in_a_few_steps(head):
    network = build_network(head).train()
    image, target = random_images(4), torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(2)) * SIZE
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []

    for _ in range(12):
        loss = keypoint_loss(network(image), target, SIZE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    assert losses[-1] < 0.8 * losses[0]


def test_tolerance_is_a_fraction_of_a_pair_s_distance_or_of_the_box_diagonal():
    points = torch.tensor([[[0.0, 0.0], [30.0, 40.0], [30.0, 0.0]]])
    spread = torch.full((1, 3), 2.0)

    of_pair, of_box = (LogToleranceRatio(pair, 0.1)(points, spread) for pair in ((0, 2), None))

    assert of_pair.exp()[0, 0].item() == pytest.approx(3.0 / 2, rel=1e-3)
    assert of_box.exp()[0, 0].item() == pytest.approx(5.0 / 2, rel=1e-3)


def test_flip_tta_gives_mirrored_outputs_for_a_mirrored_image():
    network = FlipTTA(build_network("heatmaps").eval(), (1, 0, 2), SIZE)

    with torch.no_grad():
        points, spread = network(random_images())
        mirrored_points, mirrored_spread = network(random_images().flip(2))

    assert torch.allclose(points[:, [1, 0, 2], 0], SIZE - mirrored_points[..., 0], atol=1e-3)
    assert torch.allclose(points[:, [1, 0, 2], 1], mirrored_points[..., 1], atol=1e-3)
    assert torch.allclose(spread[:, [1, 0, 2]], mirrored_spread, atol=1e-3)


@pytest.mark.parametrize(("head", "normalisation_pair"), [("heatmaps", (0, 2)), ("coordinates", None)])
def test_exported_graph_agrees_with_the_network(head, normalisation_pair, tmp_path):
    network = FlipTTA(build_network(head).eval(), (1, 0, 2), SIZE)
    served = ServedKeypoints(
        network, LogToleranceRatio(normalisation_pair, 0.05), 1.5, torch.tensor([0.1, -0.2, 0.0])
    ).eval()

    task = Keypoints(("a", "b", "c"), SIZE)
    artefacts = export.Artefacts(fp16=False, torchscript=True)
    parity = export.export(served, task, {"image": random_images(8).numpy()}, tmp_path, artefacts)

    assert parity.largest < export.TOLERANCE
    assert parity.samples == 8
