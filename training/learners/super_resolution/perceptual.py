"""How far apart two pictures look: their difference in the features of a frozen, pretrained body."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from training.vision.backbones import MEAN, STD, Body

_TINY = 1e-6


class Perception(nn.Module):
    """The features of a frozen body at the end of each of its scales but the coarsest.

    In evaluation mode for good, and without gradients of its own: it is a measure, not something that learns.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: Body, *, depths: int = 4) -> None:
        super().__init__()
        ends = _ends_of_scales(body)[:depths]
        self.ends = frozenset(ends)
        self.blocks = body.blocks[: max(ends) + 1]
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Perception":
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Pictures (n, 3, height, width) in 0…1 to features (n, channels, h, w), the finest first."""
        found, features = [], (pictures - self.mean) / self.std
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in self.ends:
                found.append(features)
        return found

    def loss(self, pictures: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The feature loss and the style loss: means over the depths, each relative to the size of what is wanted.

        The first is the L1 distance of the features (Johnson et al. 2016), the second that of their Gram matrices
        (Gatys et al. 2016), both as in the fast.ai course.
        """
        with torch.no_grad():
            targets = self(wanted)
        features, styles = [], []
        for got, target in zip(self(pictures), targets, strict=True):
            features.append((got - target).abs().mean() / (target.abs().mean() + _TINY))
            style, wanted_style = gram(got), gram(target)
            styles.append((style - wanted_style).abs().mean() / (wanted_style.abs().mean() + _TINY))
        return torch.stack(features).mean(), torch.stack(styles).mean()

    def distance(self, pictures: Tensor, wanted: Tensor) -> Tensor:
        """How different each picture looks from the one that is wanted: (n,), 0 for the same.

        As LPIPS without its learnt weights (Zhang et al. 2018): at each depth the features of a place are brought to
        length one, and their squared distance is averaged over the places; the mean over the depths.
        """
        found = []
        for got, target in zip(self(pictures), self(wanted), strict=True):
            found.append((_unit(got) - _unit(target)).square().sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(found).mean(dim=0)


def gram(features: Tensor) -> Tensor:
    """Which features occur together: (n, channels, h, w) to (n, channels, channels), over channels · places."""
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True) + _TINY).sqrt()


def _ends_of_scales(body: Body) -> list[int]:
    """The index of the last block of each scale, the finest first; the picture itself is none."""
    heights, features = [], torch.zeros(1, 3, 128, 128)
    was_training = body.training
    body.eval()
    with torch.no_grad():
        for block in body.blocks:
            features = block(features)
            heights.append(features.shape[2])
    body.train(was_training)
    return [index for index, (height, following) in enumerate(pairwise(heights)) if height != following]
