import pytest
import torch

from training.learners.super_resolution.perceptual import PerceptualFeatures, gram_matrix
from training.vision.backbones import load_body

BODY = "shufflenet_v2_x0_5"


@pytest.fixture
def perception():
    torch.manual_seed(0)
    return PerceptualFeatures(load_body(BODY, None))


def test_distance_is_zero_for_identical_images_and_grows_with_noise(perception):
    original = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    none, little, much = (perception.distance(original + amount * noise, original) for amount in (0, 0.05, 0.3))

    assert none.tolist() == [0, 0]
    assert (little > 0).all()
    assert (much > little).all()


def test_losses_are_zero_for_identical_images_and_have_gradients_otherwise(perception):
    original = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    guess = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    assert [float(loss) for loss in perception.loss(original, original)] == [0, 0]
    features, styles = perception.loss(guess, original)

    (features + styles).backward()

    assert guess.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in perception.parameters())


def test_features_stay_in_evaluation_mode(perception):
    assert not perception.train().blocks[0].training


def test_gram_matrix_holds_products_of_channels():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])

    assert gram_matrix(features)[0].tolist() == [[5 / 4, 3 / 4], [3 / 4, 9 / 4]]
