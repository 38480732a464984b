"""A label for each pixel: our U-Net with a linear layer on top, and what of it is exported."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from training.vision.backbones import Body, PixelNetwork
from training.vision.unet import UNet

_WIDTHS = (160, 96, 64, 48, 16)


class Segmenter(PixelNetwork):
    """U-Net → dropout of whole channels → 1×1 convolution: the evidence for each class at each pixel.

    `fine`: the U-Net goes up to the picture's own size; else to half of it, and the evidence is interpolated.
    """

    def __init__(self, body: Body, classes: int, *, fine: bool, dropout: float) -> None:
        super().__init__()
        self.unet = UNet(body, widths=_WIDTHS if fine else _WIDTHS[:-1])
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(self.unet.channels, classes, kernel_size=1)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Pixels 0…255 (n, height, width, 3), uint8 or float32, to logits (n, classes, height, width), float32."""
        pictures = self.normalise(image)
        evidence = self.head(self.dropout(self.unet(pictures))).float()
        # Always, also where it has the size already: a condition on a size would be burnt into the exported graph.
        return (interpolate(evidence, image.shape[1:3], mode="bilinear", align_corners=False),)


class ServedSegmenter(nn.Module):
    """What is exported: each pixel's class, and the calibrated probability of that class."""

    temperature: Tensor

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (n, height, width, 3) to classes and probabilities × 255, both uint8 (n, height, width)."""
        (logits,) = self.network(image)
        return labelled(logits / self.temperature)


def labelled(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What is served of calibrated logits (n, classes, height, width): the likeliest class, and how likely it is."""
    top, mask = logits.max(dim=1)
    # The soft-max of the largest is one over the sum of what all are beside it.
    confidence = 1 / (logits - top.unsqueeze(1)).exp().sum(dim=1)
    return mask.to(torch.uint8), (confidence * 255).round().to(torch.uint8)
