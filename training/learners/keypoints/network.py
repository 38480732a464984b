"""Keypoint networks: heat maps with their centres of mass, or direct coordinates in a bounded range."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.vision.backbones import Body, PixelNetwork
from training.vision.unet import UNet

_MARGIN = 0.1
"""How far coordinates may lie beyond each edge of the square, as a fraction of its side."""
_MIN_SPREAD, _MAX_SPREAD = 1 / 400, 1 / 4
"""Bounds of the spread, as fractions of the square's side."""
HEADS = ("heatmaps", "coordinates")


class KeypointNetwork(PixelNetwork):
    """Normalisation → features → head.

    Attributes:
        features: a module with a `body`.
        head: maps features to the outputs of `forward`.
    """

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return points (n, k, 2) and spreads (n, k) in pixels, and what else the loss needs.

        `image` holds pixel values 0…255, (n, size, size, 3). A spread is the uncertainty of a point: the standard
        deviation of its position along each axis.
        """
        outputs: tuple[Tensor, ...] = self.head(self.features(self.normalise(image)))
        return outputs


def build_keypoint_network(body: Body, head: str, *, points: int, size: int, dropout: float) -> KeypointNetwork:
    """Return a network for `points` points in squares of `size` pixels; `head` is one of HEADS."""
    if head == "heatmaps":
        unet = UNet(body, widths=(96, 64, 48))
        return KeypointNetwork(unet, HeatmapHead(unet.channels, points, size))
    return KeypointNetwork(_BodyFeatures(body), CoordinateHead(body, points, size, dropout))


class _BodyFeatures(nn.Module):
    """The features of a body alone, as an attribute named `body` like the U-Net's."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.body(pixels)
        return features


class HeatmapHead(nn.Module):
    """A heat map per point, normalised by softmax over all positions; the point is its centre of mass.

    The point is therefore more precise than the map's cells, and differentiable (Sun et al. 2018, "Integral human pose
    regression"; Nibali et al. 2018).
    """

    def __init__(self, channels: int, points: int, size: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, points, kernel_size=1)
        self.size = size
        nn.init.normal_(self.maps.weight, std=0.01)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return points, spreads and log heat maps (n, k, h, w) for features (n, channels, h, w)."""
        logits = _apply_in_float32(self.maps, features)
        height, width = logits.shape[-2:]
        log_maps = logits.flatten(2).log_softmax(dim=2).view(-1, logits.shape[1], height, width)
        mass = log_maps.exp()
        x_mass, y_mass = mass.sum(dim=2), mass.sum(dim=3)
        x, y = _cell_centres(width, self.size, logits), _cell_centres(height, self.size, logits)
        mean_x, mean_y = (x_mass * x).sum(dim=2), (y_mass * y).sum(dim=2)
        variance = (x_mass * (x - mean_x.unsqueeze(2)) ** 2).sum(dim=2)
        variance = variance + (y_mass * (y - mean_y.unsqueeze(2)) ** 2).sum(dim=2)
        spread = (variance / 2).clamp(min=(self.size * _MIN_SPREAD) ** 2).sqrt()
        return torch.stack([mean_x, mean_y], dim=2), spread, log_maps


class CoordinateHead(nn.Module):
    """Coordinates from the coarsest features, through a sigmoid whose range extends a little beyond the square."""

    def __init__(self, body: Body, points: int, size: int, dropout: float) -> None:
        super().__init__()
        with torch.no_grad():
            training = body.training
            grid = body.eval()(torch.zeros(1, 3, size, size)).shape[-2:]
            body.train(training)
        self.size = size
        self.bottleneck = nn.Sequential(
            nn.Conv2d(body.channels, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(inplace=True)
        )
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(128 * grid[0] * grid[1], 512), nn.ReLU(inplace=True)
        )
        self.last = nn.Linear(512, points * 3)
        nn.init.normal_(self.last.weight, std=0.01)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return points and spreads for features (n, channels, h, w)."""
        raw = _apply_in_float32(self.last, self.hidden(self.bottleneck(features)))
        raw = raw.view(-1, raw.shape[1] // 3, 3)
        points = raw[..., :2].sigmoid() * (1 + 2 * _MARGIN) - _MARGIN
        spread = raw[..., 2].sigmoid() * (_MAX_SPREAD - _MIN_SPREAD) + _MIN_SPREAD
        return points * self.size, spread * self.size


def _apply_in_float32(layer: nn.Module, features: Tensor) -> Tensor:
    """Apply the layer in float32 even under autocast: bfloat16 has three digits, and a point needs four."""
    output: Tensor
    if torch.is_autocast_enabled(features.device.type):
        with torch.autocast(features.device.type, enabled=False):
            output = layer(features.float())
    else:
        output = layer(features)
    return output


def _cell_centres(count: int, size: int, like: Tensor) -> Tensor:
    """Return the centres of the cells along an axis, in pixels, (count,)."""
    return (torch.arange(count, device=like.device, dtype=torch.float32) + 0.5) * (size / count)


def keypoint_loss(outputs: Sequence[Tensor], target: Tensor, size: int, *, cell_spread: float = 1.0) -> Tensor:
    """Return the mean distance between points and targets (n, k, 2), plus a term for the head.

    The distance is in tenths of the square's side; targets that are NaN do not count. For heat maps, the additional
    term is the cross entropy with a Gaussian around the target, `cell_spread` cells wide. For coordinates, it is the
    negative log-likelihood of the distance under a Laplace distribution with the predicted spread; its gradient reaches
    the spread only.
    """
    points, spread = outputs[0], outputs[1]
    known = ~target.isnan().any(dim=2)
    count = known.sum().clamp(min=1)
    target = torch.where(known.unsqueeze(2), target, points.detach())
    distance = ((points - target).pow(2).sum(dim=2) + 1e-4).sqrt() * known
    loss = distance.sum() / count * (10 / size)
    if len(outputs) > 2:
        return loss + 0.1 * (_heatmap_cross_entropy(outputs[2], target, size, cell_spread) * known).sum() / count
    negative_log_likelihood = distance.detach() / spread + 2 * spread.log()
    return loss + 0.1 * (negative_log_likelihood * known).sum() / count


def _heatmap_cross_entropy(log_maps: Tensor, target: Tensor, size: int, cell_spread: float) -> Tensor:
    """Return the cross entropy (n, k) of each map (n, k, h, w) with a Gaussian around its target, in float32."""
    height, width = log_maps.shape[-2:]
    x_weights = _gaussian_weights(target[..., 0], width, size, cell_spread)
    y_weights = _gaussian_weights(target[..., 1], height, size, cell_spread)
    expected = ((log_maps * x_weights.unsqueeze(2)).sum(dim=3) * y_weights).sum(dim=2)
    return -expected


def _gaussian_weights(mean: Tensor, count: int, size: int, cell_spread: float) -> Tensor:
    """Return the weights (n, k, count) of a Gaussian around `mean` (n, k) in the cells of an axis; they sum to 1."""
    distance = (_cell_centres(count, size, mean) - mean.unsqueeze(2)) * (count / size) / cell_spread
    return (-0.5 * distance**2).softmax(dim=2)


class FlipTTA(nn.Module):
    """Test-time augmentation: averages over the image and its mirror image, at twice the cost."""

    flip_indices: Tensor

    def __init__(self, network: nn.Module, flip_indices: Sequence[int], size: int) -> None:
        """`flip_indices` holds, for each point, the index of its counterpart in the mirror image."""
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("flip_indices", torch.tensor(flip_indices))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean points and spreads, without the outputs that only the loss needs."""
        points, spread = self.network(image)[:2]
        mirrored_points, mirrored_spread = self.network(image.flip(2))[:2]
        flipped_back = torch.stack([self.size - mirrored_points[..., 0], mirrored_points[..., 1]], dim=2)
        return (
            (points + flipped_back[:, self.flip_indices]) / 2,
            (spread + mirrored_spread[:, self.flip_indices]) / 2,
        )


class ServedKeypoints(nn.Module):
    """The exported module: points in pixels of the square, and the probability that each is correct.

    A point is correct if its error is within the tolerance, a fraction of the size of the predicted face (hand, …). The
    logit of the probability is linear in the log tolerance ratio, with one offset per point.
    """

    slope: Tensor
    offsets: Tensor

    def __init__(
        self, network: nn.Module, log_tolerance_ratio: "LogToleranceRatio", slope: float, offsets: Tensor
    ) -> None:
        super().__init__()
        self.network, self.log_tolerance_ratio = network, log_tolerance_ratio
        self.register_buffer("slope", torch.tensor(slope))
        self.register_buffer("offsets", offsets.clone())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return points (n, k, 2) and confidences (n, k) for uint8 images (n, size, size, 3)."""
        outputs = self.network(image)
        points, spread = outputs[0], outputs[1]
        return points, (self.slope * self.log_tolerance_ratio(points, spread) + self.offsets).sigmoid()


class LogToleranceRatio(nn.Module):
    """The logarithm of tolerance ÷ spread, where the tolerance is a fraction of the size of the predicted points.

    The size is the distance between the points of the normalisation pair or, without one, the diagonal of the box
    around all points.
    """

    def __init__(self, normalisation_pair: tuple[int, int] | None, tolerance: float) -> None:
        super().__init__()
        self.normalisation_pair, self.tolerance = normalisation_pair, tolerance

    def forward(self, points: Tensor, spread: Tensor) -> Tensor:
        """Return the log ratios (n, k) for points (n, k, 2) and spreads (n, k)."""
        if self.normalisation_pair is None:
            difference = points.amax(dim=1) - points.amin(dim=1)
        else:
            difference = points[:, self.normalisation_pair[0]] - points[:, self.normalisation_pair[1]]
        size = (difference.pow(2).sum(dim=1, keepdim=True) + 1.0).sqrt()
        return (self.tolerance * size / spread).log()


def uncalibrated_probability(log_ratios: Tensor) -> Tensor:
    """Return the probability mass of an isotropic Gaussian within the tolerance, from the log tolerance ratios."""
    return 1 - (-0.5 * (2 * log_ratios).exp()).exp()
