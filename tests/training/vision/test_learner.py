import pytest
from torch import nn

from tests.training.toy_learner import SmallLearner
from training.engine.learner import Stage
from training.vision.backbones import load_body
from training.vision.learner import ImageLearner, ImageOptions


class Network(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.body = load_body(name, None)
        self.head = nn.Linear(self.body.channels, 2)


class BodyLearner(ImageLearner, SmallLearner):
    """An image learner without data; what else a learner must have is that of the small one."""

    def _load_data(self, data):
        pass


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_early_layers_are_trained_with_a_lower_rate_than_late_ones(name):
    learner = BodyLearner(None, BodyLearner.default_settings, ImageOptions(discriminative=16.0), None)
    network = Network(name)

    groups = learner.param_groups(network, Stage("all", 1, 0.1))

    rates = {id(parameter): group.scale for group in groups for parameter in group.parameters}
    convolutions = [module for module in network.body.modules() if isinstance(module, nn.Conv2d)]
    by_depth = [rates[id(layer.weight)] for layer in convolutions]
    assert by_depth == sorted(by_depth)
    assert by_depth[len(by_depth) * 2 // 5] == 1 / 16
    assert by_depth[len(by_depth) * 3 // 5] == 1 / 4
    assert rates[id(network.head.weight)] == 1
    assert len(rates) == len(list(network.parameters()))
