"""Perceptual losses and distances between images, from the features of a frozen pretrained body."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from training.vision.backbones import MEAN, STD, Body

_EPSILON = 1e-6


class PerceptualFeatures(nn.Module):
    """The features of a frozen body at the end of each scale except the coarsest.

    It always stays in evaluation mode and has no trainable parameters.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: Body, *, depths: int = 4) -> None:
        super().__init__()
        layers = _last_blocks_of_scales(body)[:depths]
        self.layers = frozenset(layers)
        self.blocks = body.blocks[: max(layers) + 1]
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "PerceptualFeatures":
        """Do nothing: the module stays in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features (n, channels, h, w), finest first, for images (n, 3, height, width) in 0…1."""
        outputs, features = [], (images - self.mean) / self.std
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in self.layers:
                outputs.append(features)
        return outputs

    def loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the feature loss and the style loss: means over the depths, relative to the targets' magnitude.

        The feature loss is the L1 distance of the features (Johnson et al. 2016), the style loss that of their Gram
        matrices (Gatys et al. 2016), both as in the fast.ai course.
        """
        with torch.no_grad():
            target_features = self(targets)
        feature_losses, style_losses = [], []
        for features, target in zip(self(images), target_features, strict=True):
            feature_losses.append((features - target).abs().mean() / (target.abs().mean() + _EPSILON))
            style, target_style = gram_matrix(features), gram_matrix(target)
            style_losses.append((style - target_style).abs().mean() / (target_style.abs().mean() + _EPSILON))
        return torch.stack(feature_losses).mean(), torch.stack(style_losses).mean()

    def distance(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the perceptual distance of each image from its target, (n,); 0 for identical images.

        Like LPIPS without its learned weights (Zhang et al. 2018): the features at each position are scaled to unit
        length, and their squared distance is averaged over the positions, then over the depths.
        """
        distances = []
        for features, target in zip(self(images), self(targets), strict=True):
            squared = (_unit_length(features) - _unit_length(target)).square()
            distances.append(squared.sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(distances).mean(dim=0)


def gram_matrix(features: Tensor) -> Tensor:
    """Return the Gram matrices (n, channels, channels) of features (n, channels, h, w), over channels · positions."""
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def _unit_length(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True) + _EPSILON).sqrt()


def _last_blocks_of_scales(body: Body) -> list[int]:
    """Return the index of the last block of each scale except the coarsest, finest first."""
    heights, features = [], torch.zeros(1, 3, 128, 128)
    was_training = body.training
    body.eval()
    with torch.no_grad():
        for block in body.blocks:
            features = block(features)
            heights.append(features.shape[2])
    body.train(was_training)
    return [index for index, (height, next_height) in enumerate(pairwise(heights)) if height != next_height]
