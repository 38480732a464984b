"""Semantic segmentation network: a U-Net with a linear layer per pixel, and the module that is exported."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from training.vision.backbones import Body, PixelNetwork
from training.vision.unet import UNet

_WIDTHS = (160, 96, 64, 48, 16)


class Segmenter(PixelNetwork):
    """U-Net → channel dropout → 1×1 convolution: logits for each class at each pixel.

    With `full_resolution`, the U-Net decodes to the size of the image; otherwise to half of it, and the logits are
    interpolated.
    """

    def __init__(self, body: Body, classes: int, *, full_resolution: bool, dropout: float) -> None:
        super().__init__()
        self.unet = UNet(body, widths=_WIDTHS if full_resolution else _WIDTHS[:-1])
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(self.unet.channels, classes, kernel_size=1)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Return logits, float32 (n, classes, height, width).

        `image` holds pixel values 0…255, (n, height, width, 3), uint8 or float32.
        """
        features = self.unet(self.normalise(image))
        logits = self.head(self.dropout(features)).float()
        # Unconditional, even if the size already matches: a condition on a size would become a constant in the export.
        return (interpolate(logits, image.shape[1:3], mode="bilinear", align_corners=False),)


class ServedSegmenter(nn.Module):
    """The exported module: the class of each pixel and its calibrated probability."""

    temperature: Tensor

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return classes and probabilities × 255, both uint8 (n, height, width), for uint8 images (n, h, w, 3)."""
        (logits,) = self.network(image)
        return decode_logits(logits / self.temperature)


def decode_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most likely class and its probability × 255 for calibrated logits (n, classes, height, width)."""
    max_logits, mask = logits.max(dim=1)
    # Softmax of the maximum: 1 / sum(exp(logit - max)).
    confidence = 1 / (logits - max_logits.unsqueeze(1)).exp().sum(dim=1)
    return mask.to(torch.uint8), (confidence * 255).round().to(torch.uint8)
