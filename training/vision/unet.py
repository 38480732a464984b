"""A U-Net over a pretrained body: features at the resolution of the image, from the body's features at each scale."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from training.vision.backbones import Body


class UNet(nn.Module):
    """The body as encoder, and a decoder block for each of its scales (Ronneberger et al. 2015).

    A decoder block doubles the size by a pixel shuffle, resizes to the size of the encoder's features at that scale (an
    image's sides can have any length), and mixes the two. The last block mixes with the image itself.
    With fewer widths than the body has scales, the output is coarser than the image, a quarter of its size for example.

    Attributes:
        channels: number of channels of the features it returns.
    """

    def __init__(self, body: Body, *, widths: Sequence[int] = (160, 96, 64, 48, 16)) -> None:
        """`widths` are the channels after each doubling; the fifth has the resolution of the image."""
        super().__init__()
        self.body = body
        self.skips = _last_block_of_each_scale(body)
        scales = [channels for _, channels in self.skips]
        if len(widths) > len(scales):
            raise ValueError(f"The body has {len(scales)} scales above its last, but there are {len(widths)} widths.")
        scales, self.skips = scales[len(scales) - len(widths) :], self.skips[len(scales) - len(widths) :]
        blocks, channels = [], body.channels
        for width, skipped in zip(widths, reversed(scales), strict=True):
            blocks.append(_DecoderBlock(channels, skipped, width))
            channels = width
        self.up = nn.ModuleList(blocks)
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 (n, 3, height, width), normalised, to features (n, channels, height, width)."""
        skip_indices = {index for index, _ in self.skips}
        skips = [images] if -1 in skip_indices else []
        features = images
        for index, block in enumerate(self.body.blocks):
            features = block(features)
            if index in skip_indices:
                skips.append(features)
        for block, skipped in zip(self.up, reversed(skips), strict=True):
            features = block(features, skipped)
        return features


class _DecoderBlock(nn.Module):
    """Doubles the size, then mixes with the skipped features."""

    def __init__(self, coarse: int, skipped: int, width: int) -> None:
        super().__init__()
        self.larger = PixelShuffleUpsample(coarse, width)
        self.norm = nn.BatchNorm2d(skipped)
        self.mix = nn.Sequential(
            nn.Conv2d(width + skipped, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )

    def forward(self, coarse: Tensor, skipped: Tensor) -> Tensor:
        # Even where the sizes are equal already: a condition on a size would be frozen into the exported graph.
        doubled = interpolate(self.larger(coarse), skipped.shape[-2:], mode="bilinear", align_corners=False)
        mixed: Tensor = self.mix(torch.cat([doubled, self.norm(skipped)], dim=1))
        return mixed


class PixelShuffleUpsample(nn.Module):
    """A convolution and a pixel shuffle: (n, channels, h, w) to (n, width, 2h, 2w).

    Initialised as nearest-neighbour resizing (ICNR, Aitken et al. 2017), which avoids checkerboard artefacts.
    """

    def __init__(self, channels: int, width: int, *, activation: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 4 * width, 1)
        self.shuffle = nn.PixelShuffle(2)
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()
        with torch.no_grad():
            kernel = torch.empty(width, channels, 1, 1)
            nn.init.kaiming_normal_(kernel)
            self.convolution.weight.copy_(kernel.repeat_interleave(4, dim=0))
            nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, width, 2h, 2w)."""
        doubled: Tensor = self.shuffle(self.activation(self.convolution(features)))
        return doubled


def _last_block_of_each_scale(body: Body) -> list[tuple[int, int]]:
    """(index, channels) of the last block of each scale but the coarsest; index -1 is the image itself."""
    blocks: list[tuple[int, int]] = []
    features, height = torch.zeros(1, 3, 128, 128), 128
    was_training = body.training
    body.eval()
    with torch.no_grad():
        for index, block in enumerate(body.blocks):
            channels = features.shape[1]
            features = block(features)
            if features.shape[2] != height:
                blocks.append((index - 1, channels))
                height = features.shape[2]
    body.train(was_training)
    return blocks
