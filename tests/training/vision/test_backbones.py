import pytest
import torch

from training.core.errors import CannotTrain
from training.data.download import Fetcher
from training.vision.backbones import load_body, weights_file


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "regnet_y_400mf", "densenet121", "mnasnet0_5"])
def test_networks_of_each_family_return_a_feature_map(name):
    body = load_body(name, None).eval()

    with torch.no_grad():
        assert body(torch.zeros(1, 3, 64, 64)).shape == (1, body.channels, 2, 2)


@pytest.mark.parametrize(("name", "sentence"), [("nonet", "no network named 'nonet'"), ("vit_b_16", "no feature map")])
def test_an_unsupported_network_is_an_error_that_names_supported_ones(name, sentence):
    with pytest.raises(CannotTrain, match=sentence + ".*resnet18"):
        load_body(name, None)


def test_weights_are_loaded_from_a_file_with_any_head(tmp_path):
    body = load_body("shufflenet_v2_x0_5", None)
    from torchvision import models

    network = models.shufflenet_v2_x0_5(weights=None, num_classes=7)
    torch.save(network.state_dict(), tmp_path / "own.pth")

    loaded = load_body("shufflenet_v2_x0_5", tmp_path / "own.pth")

    expected = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(a, b) for a, b in zip(expected.values(), loaded.state_dict().values(), strict=True))
    assert body.channels == loaded.channels


def test_weights_that_do_not_match_or_cannot_be_read_are_named(tmp_path):
    torch.save({"something": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    fetcher = Fetcher(tmp_path / "data")

    with pytest.raises(CannotTrain, match=r"other\.pth does not contain the weights of resnet18"):
        load_body("resnet18", tmp_path / "other.pth")
    with pytest.raises(CannotTrain, match=r"text\.pth cannot be read"):
        load_body("resnet18", tmp_path / "text.pth")
    with pytest.raises(CannotTrain, match="no such file"):
        weights_file("resnet18", str(tmp_path / "nowhere.pth"), fetcher)
    assert weights_file("resnet18", "none", fetcher) is None


def test_a_file_of_weights_that_contains_code_is_not_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"features": Evil()}, tmp_path / "evil.pth")

    with pytest.raises(CannotTrain, match="cannot be read"):
        load_body("resnet18", tmp_path / "evil.pth")
    assert not (tmp_path / "written").exists()


FAMILIES = (
    *("resnet18", "resnet152", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny", "vgg16_bn"),
    *("densenet121", "regnet_y_400mf", "shufflenet_v2_x0_5", "mnasnet0_5"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_half_of_a_body_holds_about_half_of_its_layers(name):
    body = load_body(name, None)

    lower, upper = body.halves()

    layers = [sum(parameter.dim() > 1 for parameter in half) for half in (lower, upper)]
    assert 0.4 < layers[0] / sum(layers) < 0.6
    assert list(map(id, (*lower, *upper))) == list(map(id, body.parameters())), "each parameter is in one, in order"


def test_halves_meet_between_residual_blocks():
    body = load_body("resnet50", None)

    lower, _ = body.halves()

    names = {id(parameter): name for name, parameter in body.named_parameters()}
    assert names[id(lower[-1])] == "blocks.5.3.bn3.bias", "the end of the second stage"
