"""Super-resolution network: a U-Net for context and residual convolutions for detail, added to bicubic resizing."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, pixel_shuffle

from training.vision.backbones import MEAN, STD, Body
from training.vision.unet import UNet

_TAPS = 5
"""Size of the bicubic kernel: a pixel of the larger image depends on up to two pixels of the smaller on each side."""


class Bicubic(nn.Module):
    """Bicubic upscaling by an integer factor (Keys 1981, a = -0.5, as in Pillow and MATLAB), as one convolution.

    Each of the scale² positions within a pixel has its own kernel. Border pixels are replicated.
    """

    kernels: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        positions = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5
        taps = torch.arange(_TAPS, dtype=torch.float64) - _TAPS // 2
        weights = _keys_kernel((positions[:, None] - taps[None]).abs())
        kernels = torch.einsum("ia,jb->ijab", weights, weights).reshape(scale**2, 1, _TAPS, _TAPS)
        self.register_buffer("kernels", kernels.repeat(3, 1, 1, 1).float())

    def forward(self, images: Tensor) -> Tensor:
        """Upscale (n, 3, height, width) to (n, 3, scale·height, scale·width)."""
        margin = _TAPS // 2
        padded = pad(images, (margin, margin, margin, margin), mode="replicate")
        return pixel_shuffle(conv2d(padded, self.kernels.to(padded.dtype), groups=3), self.scale)


def _keys_kernel(distance: Tensor) -> Tensor:
    """Evaluate Keys' cubic kernel with a = -0.5."""
    inner = 1.5 * distance**3 - 2.5 * distance**2 + 1
    outer = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return torch.where(distance <= 1, inner, torch.where(distance < 2, outer, 0.0))


class Generator(nn.Module):
    """Bicubic resizing plus a learned correction.

    The U-Net provides context (such as which letters cover the image), the residual convolutions at the input's
    resolution provide detail. A last convolution and a pixel shuffle give the correction at the larger size. It starts
    at zero, so an untrained generator is bicubic resizing.

    The BatchNorm statistics of the pretrained body stay fixed in training: statistics of a few small crops would differ
    from those of the tiles in service.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: Body, scale: int, *, width: int, blocks: int) -> None:
        super().__init__()
        self.unet = UNet(body)
        self.bicubic = Bicubic(scale)
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.mix = nn.Conv2d(width + self.unet.channels, width, 1)
        self.blocks = nn.Sequential(*(_ResidualBlock(width) for _ in range(blocks)))
        self.last = nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def train(self, mode: bool = True) -> "Generator":
        """Set training mode, except for the body's BatchNorm layers."""
        super().train(mode)
        for module in self.unet.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Return images (n, 3, scale·height, scale·width) (not clamped) for uint8 images (n, height, width, 3)."""
        pixels = image.permute(0, 3, 1, 2).float() / 255
        normalised = (pixels - self.mean) / self.std
        detail = self.first(normalised)
        features = self.mix(torch.cat([detail, self.unet(normalised)], dim=1))
        correction = self.shuffle(self.last(self.blocks(features)))
        return (self._upscale(pixels) + correction.float(),)

    def _upscale(self, pixels: Tensor) -> Tensor:
        upscaled: Tensor
        if not torch.is_autocast_enabled(pixels.device.type):
            upscaled = self.bicubic(pixels)
            return upscaled
        # 16 bits are precise enough for the correction, but not for the image itself.
        with torch.autocast(pixels.device.type, enabled=False):
            upscaled = self.bicubic(pixels)
            return upscaled


class _ResidualBlock(nn.Module):
    """Two convolutions with a skip connection, without BatchNorm (Lim et al. 2017, EDSR)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1)
        )
        with torch.no_grad():
            self.convolutions[2].weight.mul_(0.1)  # type: ignore[operator]

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = features + self.convolutions(features)
        return output


class ServedGenerator(nn.Module):
    """The exported module: 8-bit pixels in, 8-bit pixels out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Return uint8 (n, scale·height, scale·width, 3) for uint8 (n, height, width, 3)."""
        (restored,) = self.network(image)
        levels = (restored * 255).round().clamp(0, 255).to(torch.uint8)
        return (levels.permute(0, 2, 3, 1),)
