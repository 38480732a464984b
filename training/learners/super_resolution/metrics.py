"""Image quality metrics: PSNR, SSIM, and their means over a set of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

Pixels = NDArray[np.uint8]
_MIN_ERROR = 1e-2
"""Lower bound of the squared error: identical images have a PSNR of 68 dB instead of infinity."""
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(restored: Pixels, original: Pixels, mask: NDArray[np.bool_] | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels, or over the pixels of the mask."""
    squared_error = (restored.astype(np.float32) - original.astype(np.float32)) ** 2
    error = float(squared_error.mean() if mask is None else squared_error[mask].mean())
    return float(10 * np.log10(255**2 / max(error, _MIN_ERROR)))


def ssim(restored: Pixels, original: Pixels) -> float:
    """Return the structural similarity, 1 for identical images (Wang et al. 2004: Gaussian window of 11, sigma 1.5).

    It is the mean over the three channels. For images smaller than the window, the window is shrunk to fit.
    """
    a, b = (torch.tensor(pixels).permute(2, 0, 1).unsqueeze(1).float() / 255 for pixels in (restored, original))
    size = min(_WINDOW, *a.shape[2:])
    positions = torch.arange(size) - (size - 1) / 2
    kernel = torch.exp(-(positions**2) / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()

    def local_mean(values: Tensor) -> Tensor:
        return conv2d(conv2d(values, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))

    mean_a, mean_b = local_mean(a), local_mean(b)
    variances = local_mean(a * a) - mean_a**2 + local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float((numerator / ((mean_a**2 + mean_b**2 + _C1) * (variances + _C2))).mean())


@dataclass(frozen=True)
class Quality:
    """The quality of one image.

    Attributes:
        psnr: in dB, over all pixels.
        ssim: structural similarity.
        distance: perceptual distance (training/learners/super_resolution/perceptual.py).
        text_psnr: PSNR over the pixels under text; None without text.
        other_psnr: PSNR over the other pixels; None if there are none.
    """

    psnr: float
    ssim: float
    distance: float
    text_psnr: float | None
    other_psnr: float | None


@dataclass(frozen=True)
class ImageResult:
    """The quality of one restored image and of its bicubic resizing; `jpeg_quality` is None without compression."""

    name: str
    jpeg_quality: int | None
    restored: Quality
    bicubic: Quality

    @property
    def gain(self) -> float:
        """PSNR gain over bicubic resizing, in dB."""
        return self.restored.psnr - self.bicubic.psnr


@dataclass(frozen=True)
class QualitySummary:
    """Means over a set of images; those under text are over the images with text."""

    count: int
    restored: Quality
    bicubic: Quality

    @property
    def psnr_gain(self) -> float:
        """In dB, over all pixels."""
        return self.restored.psnr - self.bicubic.psnr

    @property
    def text_gain(self) -> float:
        """In dB, over the pixels under text; 0 if there are none."""
        return (self.restored.text_psnr or 0.0) - (self.bicubic.text_psnr or 0.0)

    @property
    def other_gain(self) -> float:
        """In dB, over the pixels that no text covers."""
        return (self.restored.other_psnr or 0.0) - (self.bicubic.other_psnr or 0.0)


def summarise(results: Sequence[ImageResult]) -> QualitySummary:
    """Return the mean quality of the images."""
    restored, bicubic = [result.restored for result in results], [result.bicubic for result in results]
    return QualitySummary(len(results), _mean_quality(restored), _mean_quality(bicubic))


def _mean_quality(qualities: Sequence[Quality]) -> Quality:
    return Quality(
        psnr=fmean(quality.psnr for quality in qualities),
        ssim=fmean(quality.ssim for quality in qualities),
        distance=fmean(quality.distance for quality in qualities),
        text_psnr=_mean_of_known([quality.text_psnr for quality in qualities]),
        other_psnr=_mean_of_known([quality.other_psnr for quality in qualities]),
    )


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
