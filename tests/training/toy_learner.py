"""A minimal learner: points in the plane, separated by a line; no BatchNorm, no dropout."""

import torch
from torch import nn

from training.engine.batches import SampleSet
from training.engine.inference import collect_outputs
from training.engine.learner import Learner, Stage
from training.engine.optim import ParamGroup
from training.engine.runtime import Runtime

CPU = Runtime(torch.device("cpu"))


class Points(SampleSet):
    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.points = torch.randn(count, 2, generator=generator)
        self.targets = (self.points[:, 0] > self.points[:, 1]).long()

    def __len__(self):
        return len(self.points)

    def __getitems__(self, keys):
        index = torch.tensor([i for _, i in keys])
        return {"points": self.points[index], "target": self.targets[index], "index": index}


class SmallLearner(Learner):
    def __init__(self, epochs=None):
        self.samples, self.held_out = Points(96, 0), Points(40, 1)
        self.steps, self.epoch, self.loss_factor = 0, 0, 1.0
        self.scores_of_epoch = None
        self.epochs = epochs

    @classmethod
    def from_data(cls, data, settings, options, fetcher):
        return cls()

    def data_summary(self):
        return "points"

    def network(self):
        return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def stages(self):
        return (Stage("frozen", 1, 0.01, frozen=True), Stage("all", self.epochs or 5, 0.02))

    def param_groups(self, network, stage):
        for parameter in network[0].parameters():
            parameter.requires_grad = not stage.frozen
        return [ParamGroup(tuple(network[2].parameters())), ParamGroup(tuple(network[0].parameters()), 0.5)]

    def loss(self, network, batch):
        self.steps += 1
        return nn.functional.cross_entropy(network(batch["points"]), batch["target"]) * self.loss_factor

    def scores(self, network, runtime):
        self.epoch += 1
        if self.scores_of_epoch:
            return self.scores_of_epoch(self.epoch)
        logits = collect_outputs(_ReturnsTuple(network), ["points"], self.held_out, runtime, batch_size=16)
        return {"score": float((logits.argmax(dim=1) == self.held_out.targets).float().mean())}

    def to_inference_module(self, network):
        raise NotImplementedError

    def evaluate(self, trained, served, exported):
        raise NotImplementedError

    def validation_inputs(self, count):
        raise NotImplementedError

    def golden_requests(self, served):
        raise NotImplementedError


class _ReturnsTuple(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, points):
        return (self.network(points),)
