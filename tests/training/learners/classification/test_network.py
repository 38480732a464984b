import pytest
import torch
from torch import nn

from training.learners.classification.network import Classifier, FlipTTA, ServedClassifier
from training.vision.backbones import load_body


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(load_body("shufflenet_v2_x0_5", None), 5, dropout=0.0).eval()


def make_pixels(count=2, size=64):
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_pooling_the_map_equals_pooling_before_a_linear_layer(classifier):
    image = make_pixels()
    with torch.no_grad():
        logits, evidence = classifier(image)
        normalised = (image.permute(0, 3, 1, 2).float() - classifier.mean) / classifier.std
        pooled = classifier.body(normalised).mean(dim=(2, 3))
        linear = nn.functional.linear(pooled, classifier.head.weight.flatten(1), classifier.head.bias)

    assert torch.allclose(logits, evidence.mean(dim=(2, 3)), atol=1e-5)
    assert torch.allclose(logits, linear, atol=1e-4)


def test_the_evidence_map_equals_grad_cam(classifier):
    normalised = (make_pixels(1).permute(0, 3, 1, 2).float() - classifier.mean) / classifier.std
    features = classifier.body(normalised).detach().requires_grad_()
    evidence = classifier.head(features)
    (gradient,) = torch.autograd.grad(evidence.mean(dim=(2, 3))[0, 3], features)
    positions = features.shape[2] * features.shape[3]

    grad_cam = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1) * positions

    assert torch.allclose(grad_cam, evidence[:, 3] - classifier.head.bias[3], atol=1e-4)


def test_a_mirrored_image_has_the_same_logits_and_a_mirrored_map(classifier):
    image = make_pixels()
    with torch.no_grad():
        logits, evidence = FlipTTA(classifier)(image)
        flipped_logits, flipped_evidence = FlipTTA(classifier)(image.flip(2))

    assert torch.allclose(logits, flipped_logits, atol=1e-5)
    assert torch.allclose(evidence, flipped_evidence.flip(3), atol=1e-5)


def test_served_probabilities_sum_to_one_and_a_higher_temperature_flattens_them(classifier):
    with torch.no_grad():
        sharp, _ = ServedClassifier(classifier, 0.1)(make_pixels())
        flat, _ = ServedClassifier(classifier, 10.0)(make_pixels())

    assert sharp.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert (sharp.max(dim=1).values > flat.max(dim=1).values).all()
    assert torch.equal(sharp.argmax(dim=1), flat.argmax(dim=1))
