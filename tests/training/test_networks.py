import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tasks._tables import MISSING, UNKNOWN
from training.core.errors import CannotTrain
from training.data.download import Fetcher
from training.learners.classification.network import Classifier, FlipTTA, ServedClassifier
from training.learners.tabular.network import Numbers, TabularNetwork, embedding_size
from training.vision.backbones import load_body, weights_file


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(load_body("shufflenet_v2_x0_5", None), 5, dropout=0.0).eval()


def pixels(count=2, size=64):
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_map_pooled_is_the_answer_and_the_same_as_pooling_before_a_linear_layer(classifier):
    image = pixels()
    with torch.no_grad():
        logits, evidence = classifier(image)
        pictures = (image.permute(0, 3, 1, 2).float() - classifier.mean) / classifier.std
        pooled = classifier.body(pictures).mean(dim=(2, 3))
        linear = nn.functional.linear(pooled, classifier.head.weight.flatten(1), classifier.head.bias)

    assert torch.allclose(logits, evidence.mean(dim=(2, 3)), atol=1e-5)
    assert torch.allclose(logits, linear, atol=1e-4)


def test_the_map_is_grad_cam(classifier):
    pictures = (pixels(1).permute(0, 3, 1, 2).float() - classifier.mean) / classifier.std
    features = classifier.body(pictures).detach().requires_grad_()
    evidence = classifier.head(features)
    (gradient,) = torch.autograd.grad(evidence.mean(dim=(2, 3))[0, 3], features)
    places = features.shape[2] * features.shape[3]

    grad_cam = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1) * places

    assert torch.allclose(grad_cam, evidence[:, 3] - classifier.head.bias[3], atol=1e-4)


def test_a_mirrored_picture_gets_the_same_answer_with_its_map_turned(classifier):
    image = pixels()
    with torch.no_grad():
        logits, evidence = FlipTTA(classifier)(image)
        turned, mirrored = FlipTTA(classifier)(image.flip(2))

    assert torch.allclose(logits, turned, atol=1e-5)
    assert torch.allclose(evidence, mirrored.flip(3), atol=1e-5)


def test_served_probabilities_sum_to_one_and_the_temperature_flattens_them(classifier):
    with torch.no_grad():
        sharp, _ = ServedClassifier(classifier, 0.1)(pixels())
        flat, _ = ServedClassifier(classifier, 10.0)(pixels())

    assert sharp.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert (sharp.max(dim=1).values > flat.max(dim=1).values).all()
    assert torch.equal(sharp.argmax(dim=1), flat.argmax(dim=1))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "densenet121", "mnasnet0_5"])
def test_networks_of_each_family_give_a_feature_map(name):
    made = load_body(name, None).eval()

    with torch.no_grad():
        assert made(torch.zeros(1, 3, 64, 64)).shape == (1, made.channels, 2, 2)


@pytest.mark.parametrize(("name", "sentence"), [("nonet", "no network named 'nonet'"), ("vit_b_16", "no feature map")])
def test_a_network_that_cannot_be_used_is_an_error_that_names_others(name, sentence):
    with pytest.raises(CannotTrain, match=sentence + ".*resnet18"):
        load_body(name, None)


def test_weights_are_loaded_from_a_file_whatever_the_head(tmp_path):
    made = load_body("shufflenet_v2_x0_5", None)
    from torchvision import models

    whole = models.shufflenet_v2_x0_5(weights=None, num_classes=7)
    torch.save(whole.state_dict(), tmp_path / "own.pth")

    loaded = load_body("shufflenet_v2_x0_5", tmp_path / "own.pth")

    recipe_for = {key: value for key, value in whole.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(a, b) for a, b in zip(recipe_for.values(), loaded.state_dict().values(), strict=True))
    assert made.channels == loaded.channels


def test_weights_that_do_not_fit_or_are_none_are_named(tmp_path):
    torch.save({"something": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    fetcher = Fetcher(tmp_path / "data")

    with pytest.raises(CannotTrain, match=r"other\.pth does not hold the weights of resnet18"):
        load_body("resnet18", tmp_path / "other.pth")
    with pytest.raises(CannotTrain, match=r"text\.pth cannot be read"):
        load_body("resnet18", tmp_path / "text.pth")
    with pytest.raises(CannotTrain, match="there is no such file"):
        weights_file("resnet18", str(tmp_path / "nowhere.pth"), fetcher)
    assert weights_file("resnet18", "none", fetcher) is None


def test_a_file_of_weights_that_would_run_code_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"features": Evil()}, tmp_path / "evil.pth")

    with pytest.raises(CannotTrain, match="cannot be read"):
        load_body("resnet18", tmp_path / "evil.pth")
    assert not (tmp_path / "written").exists()


def tabular(categories=(3, 5), columns=2, **more):
    torch.manual_seed(0)
    numbers = torch.randn(200, columns) * 50
    settings = {"layers": [16], "dropout": 0.0, "bins": 8, "value_dropout": 0.0} | more
    return TabularNetwork(categories, numbers, 3, **settings)


@given(st.integers(2, 5000))
def test_embeddings_grow_with_the_number_of_categories_and_stay_smaller(count):
    assert 1 <= embedding_size(count) <= min(600, 2 * count)
    assert embedding_size(count) <= embedding_size(count + 1)


def test_unknown_and_missing_values_give_finite_answers_that_differ_from_known_ones():
    network = tabular().eval()
    categories = torch.tensor([[2, 2], [UNKNOWN, 2], [MISSING, 2], [2, 2]])
    numbers = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [torch.nan, 2.0]])

    with torch.no_grad():
        (logits,) = network(categories, numbers)

    assert logits.isfinite().all()
    assert len({tuple(row) for row in logits.tolist()}) == 4


@given(st.floats(-(2.0**99), 2.0**99, width=32))
def test_any_finite_number_becomes_bounded_features(value):
    numbers = Numbers(torch.tensor([[0.0], [0.0], [5.0], [99999.0]]), 8)

    features = numbers(torch.tensor([[value]]))

    assert features.isfinite().all()
    assert features.abs().max() <= 5


def test_a_column_that_is_mostly_zero_still_tells_its_other_values_apart():
    values = torch.cat([torch.zeros(950), torch.linspace(100, 20000, 50)]).unsqueeze(1)
    numbers = Numbers(values, 16)

    low, high = numbers(torch.tensor([[150.0]])), numbers(torch.tensor([[9000.0]]))

    assert (low - high).abs()[:, 2:].sum() > 1


def test_a_column_without_any_number_and_a_table_without_numbers_work():
    empty = Numbers(torch.full((5, 1), torch.nan), 4)
    none = tabular(columns=0).eval()

    assert empty(torch.tensor([[3.0], [torch.nan]])).isfinite().all()
    assert none(torch.tensor([[2, 2]]), torch.zeros(1, 0))[0].shape == (1, 3)


def test_training_blanks_a_share_of_the_values_and_serving_none():
    network = tabular(value_dropout=0.5)
    categories, numbers = torch.full((400, 2), 2), torch.ones(400, 2)

    changed, holed = network._blank(categories, numbers)

    assert {UNKNOWN, MISSING} <= set(changed.flatten().tolist())
    assert 0.4 < holed.isnan().float().mean() < 0.6
    network.eval()
    with torch.no_grad():
        assert np.unique(network(categories, numbers)[0].numpy(), axis=0).shape[0] == 1
