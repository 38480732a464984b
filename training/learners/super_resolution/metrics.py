"""How near a picture comes to the one that is wanted: PSNR, SSIM, and what they are for a whole set of pictures."""

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
"""Of squared levels: two pictures that are the same have 68 dB, and not infinitely many."""
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(got: Pixels, wanted: Pixels, where: NDArray[np.bool_] | None = None) -> float:
    """The peak signal-to-noise ratio in dB over all pixels and the three colours, or over the pixels `where`."""
    squared = (got.astype(np.float32) - wanted.astype(np.float32)) ** 2
    error = float(squared.mean() if where is None else squared[where].mean())
    return float(10 * np.log10(255**2 / max(error, _MIN_ERROR)))


def ssim(got: Pixels, wanted: Pixels) -> float:
    """The structural similarity, 1 for the same (Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5).

    The mean over the three colours; pictures smaller than the window are compared by one that fits.
    """
    a, b = (torch.tensor(each).permute(2, 0, 1).unsqueeze(1).float() / 255 for each in (got, wanted))
    size = min(_WINDOW, *a.shape[2:])
    places = torch.arange(size) - (size - 1) / 2
    line = torch.exp(-(places**2) / (2 * _SIGMA**2))
    line = line / line.sum()

    def local(values: Tensor) -> Tensor:
        return conv2d(conv2d(values, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    mean_a, mean_b = local(a), local(b)
    variances = local(a * a) - mean_a**2 + local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    perceptual_hash = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float((perceptual_hash / ((mean_a**2 + mean_b**2 + _C1) * (variances + _C2))).mean())


@dataclass(frozen=True)
class Quality:
    """How near one picture came.

    Attributes:
        distance: of what they look like (training/learners/super_resolution/perceptual.py).
        under_text: PSNR where text was; None where there was none.
        elsewhere: PSNR where there was none.
    """

    psnr: float
    ssim: float
    distance: float
    under_text: float | None
    elsewhere: float | None


@dataclass(frozen=True)
class Judged:
    """One picture: restored, and by bicubic resizing. `quality` is that of the JPEG; None: it went through none."""

    name: str
    quality: int | None
    restored: Quality
    bicubic: Quality

    @property
    def gain(self) -> float:
        """How much nearer the restored one is, in dB."""
        return self.restored.psnr - self.bicubic.psnr


@dataclass(frozen=True)
class Summary:
    """The means over a set of pictures; of what is under text over those that have any."""

    count: int
    restored: Quality
    bicubic: Quality

    @property
    def psnr_gain(self) -> float:
        """In dB, over all pixels."""
        return self.restored.psnr - self.bicubic.psnr

    @property
    def text_gain(self) -> float:
        """In dB, over the pixels under text; 0 where there are none."""
        return (self.restored.under_text or 0.0) - (self.bicubic.under_text or 0.0)

    @property
    def other_gain(self) -> float:
        """In dB, over the pixels that no text covered."""
        return (self.restored.elsewhere or 0.0) - (self.bicubic.elsewhere or 0.0)


def summary(judged: Sequence[Judged]) -> Summary:
    """The means."""
    return Summary(len(judged), _mean([each.restored for each in judged]), _mean([each.bicubic for each in judged]))


def _mean(qualities: Sequence[Quality]) -> Quality:
    return Quality(
        psnr=fmean(each.psnr for each in qualities),
        ssim=fmean(each.ssim for each in qualities),
        distance=fmean(each.distance for each in qualities),
        under_text=_mean_of_known([each.under_text for each in qualities]),
        elsewhere=_mean_of_known([each.elsewhere for each in qualities]),
    )


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
