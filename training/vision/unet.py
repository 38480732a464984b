"""A U-Net over a pretrained body: features as fine as the picture, from what the body sees at every scale."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from training.vision.backbones import Body


class UNet(nn.Module):
    """The body on the way down, and a block for each of its scales on the way up (Ronneberger et al. 2015).

    On the way up a block doubles the size by a pixel shuffle, brings it to the size of the body's features at that
    scale, whatever that is (a picture's sides need not be multiples of anything), and mixes the two. The last block
    mixes with the picture itself. With fewer widths than the body has scales it stops before: at a quarter of the size,
    say.

    Attributes:
        channels: of the features it returns.
    """

    def __init__(self, body: Body, *, widths: Sequence[int] = (160, 96, 64, 48, 16)) -> None:
        """`widths` are the channels after each doubling; of five, the last ones are as fine as the picture."""
        super().__init__()
        self.body = body
        self.taken = _last_of_each_scale(body)
        scales = [channels for _, channels in self.taken]
        if len(widths) > len(scales):
            raise ValueError(f"The body has {len(scales)} scales above its last; there are {len(widths)} widths.")
        scales, self.taken = scales[len(scales) - len(widths) :], self.taken[len(scales) - len(widths) :]
        blocks, coarse = [], body.channels
        for width, skipped in zip(widths, reversed(scales), strict=True):
            blocks.append(_Up(coarse, skipped, width))
            coarse = width
        self.up = nn.ModuleList(blocks)
        self.channels = coarse

    def forward(self, pictures: Tensor) -> Tensor:
        """float32 (n, 3, height, width), normalised, to features (n, channels, height, width)."""
        wanted = {index for index, _ in self.taken}
        kept = [pictures] if -1 in wanted else []
        features = pictures
        for index, block in enumerate(self.body.blocks):
            features = block(features)
            if index in wanted:
                kept.append(features)
        for block, skipped in zip(self.up, reversed(kept), strict=True):
            features = block(features, skipped)
        return features


class _Up(nn.Module):
    """Twice the size, then mixed with the features that were skipped."""

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
        # Always, also where the sizes are equal already: a condition on a size would be burnt into the exported graph.
        doubled = interpolate(self.larger(coarse), skipped.shape[-2:], mode="bilinear", align_corners=False)
        mixed: Tensor = self.mix(torch.cat([doubled, self.norm(skipped)], dim=1))
        return mixed


class PixelShuffleUpsample(nn.Module):
    """A convolution and a pixel shuffle: (n, channels, h, w) to (n, width, 2h, 2w).

    It begins as nearest-neighbour resizing (ICNR, Aitken et al. 2017), so that no checkerboard has to be unlearnt.
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
        """(n, channels, h, w) to (n, width, 2h, 2w)."""
        doubled: Tensor = self.shuffle(self.activation(self.convolution(features)))
        return doubled


def _last_of_each_scale(body: Body) -> list[tuple[int, int]]:
    """(index, channels) of the last block of each scale but the coarsest; index -1 is the picture itself."""
    found: list[tuple[int, int]] = []
    features, height = torch.zeros(1, 3, 128, 128), 128
    was_training = body.training
    body.eval()
    with torch.no_grad():
        for index, block in enumerate(body.blocks):
            channels = features.shape[1]
            features = block(features)
            if features.shape[2] != height:
                found.append((index - 1, channels))
                height = features.shape[2]
    body.train(was_training)
    return found
