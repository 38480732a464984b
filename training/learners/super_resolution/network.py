"""The network that makes a picture larger and cleaner: a U-Net for the whole, residual convolutions for the detail."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, pixel_shuffle

from training.vision.backbones import MEAN, STD, Body
from training.vision.unet import UNet

_TAPS = 5
"""Of the bicubic kernel, for one pixel of the larger picture: it reaches two pixels of the smaller one each way."""


class Bicubic(nn.Module):
    """Bicubic resizing by a whole number (Keys 1981, a = -0.5, as in Pillow and MATLAB), as one convolution.

    Each of the scale² places within a pixel has a kernel of its own. Beyond the border the outermost pixels go on.
    """

    kernels: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        places = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
        taps = torch.arange(_TAPS, dtype=torch.float64) - _TAPS // 2
        line = _keys((places[:, None] - taps[None]).abs())
        kernels = torch.einsum("ia,jb->ijab", line, line).reshape(scale**2, 1, _TAPS, _TAPS)
        self.register_buffer("kernels", kernels.repeat(3, 1, 1, 1).float())

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 3, height, width) to (n, 3, scale·height, scale·width)."""
        reach = _TAPS // 2
        padded = pad(pictures, (reach, reach, reach, reach), mode="replicate")
        return pixel_shuffle(conv2d(padded, self.kernels.to(padded.dtype), groups=3), self.scale)


def _keys(distance: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5."""
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


class Generator(nn.Module):
    """Bicubic resizing, plus what the network has learnt to add to it.

    The U-Net sees what is far away (which letters are drawn over what), the residual convolutions at the size of the
    picture that is sent what is near; a last convolution and a pixel shuffle give the correction at the larger size.
    It begins at zero, so an untrained generator is bicubic resizing.

    The pretrained body's BatchNorm keeps its statistics in training too: those of a few small crops would be others
    than those of the tiles that are served.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: Body, scale: int, *, width: int, blocks: int) -> None:
        super().__init__()
        self.unet = UNet(body)
        self.bicubic = Bicubic(scale)
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.mix = nn.Conv2d(width + self.unet.channels, width, 1)
        self.blocks = nn.Sequential(*(_Residual(width) for _ in range(blocks)))
        self.last = nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def train(self, mode: bool = True) -> "Generator":
        """Training mode for all but the statistics of the body."""
        super().train(mode)
        for part in self.unet.body.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        return self

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Pixels uint8 (n, height, width, 3) to a picture (n, 3, scale·height, scale·width), about 0…1, not clamped."""
        pictures = image.permute(0, 3, 1, 2).float() / 255
        standard = (pictures - self.mean) / self.std
        near = self.first(standard)
        features = self.mix(torch.cat([near, self.unet(standard)], dim=1))
        correction = self.shuffle(self.last(self.blocks(features)))
        return (self._resized(pictures) + correction.float(),)

    def _resized(self, pictures: Tensor) -> Tensor:
        resized: Tensor
        if not torch.is_autocast_enabled(pictures.device.type):
            resized = self.bicubic(pictures)
            return resized
        # 16 bits are enough for a correction, and too few for the picture itself.
        with torch.autocast(pictures.device.type, enabled=False):
            resized = self.bicubic(pictures)
            return resized


class _Residual(nn.Module):
    """Two convolutions beside a way straight on, without BatchNorm (Lim et al. 2017, EDSR)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1)
        )
        with torch.no_grad():
            self.convolutions[2].weight.mul_(0.1)  # type: ignore[operator]

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = features + self.convolutions(features)
        return added


class ServedGenerator(nn.Module):
    """What is exported: 8-bit pixels in, 8-bit pixels out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """uint8 (n, height, width, 3) to uint8 (n, scale·height, scale·width, 3)."""
        (restored,) = self.network(image)
        levels = (restored * 255).round().clamp(0, 255).to(torch.uint8)
        return (levels.permute(0, 2, 3, 1),)
