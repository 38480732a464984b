"""Networks that say where points are: by coordinates in a bounded range, or by heat maps and their centres of mass."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.vision.backbones import Body, PixelNetwork
from training.vision.unet import UNet

_MARGIN = 0.1
"""How far beyond each edge of the square coordinates may lie, as a share of its side."""
_MIN_SPREAD, _MAX_SPREAD = 1 / 400, 1 / 4
"""Bounds of the spread, as shares of the square's side."""
HEADS = ("heatmaps", "coordinates")


class KeypointNetwork(PixelNetwork):
    """Normalise → features → head.

    Attributes:
        features: a module with a `body`.
        head: from feature maps to what `forward` returns.
    """

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Pixels 0…255 (n, size, size, 3) to points (n, k, 2) and spreads (n, k), in pixels, and what the loss needs.

        A spread says how unsure a point is: the standard deviation of its place along each axis.
        """
        pictures = self.normalise(image)
        found: tuple[Tensor, ...] = self.head(self.features(pictures))
        return found


def keypoint_network(body: Body, head: str, *, points: int, size: int, dropout: float) -> KeypointNetwork:
    """The network for `points` points in squares of `size` pixels; `head` is one of HEADS."""
    if head == "heatmaps":
        unet = UNet(body, widths=(96, 64, 48))
        return KeypointNetwork(unet, HeatMaps(unet.channels, points, size))
    return KeypointNetwork(_Whole(body), Coordinates(body, points, size, dropout))


class _Whole(nn.Module):
    """A body and nothing more."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.body(pictures)
        return features


class HeatMaps(nn.Module):
    """A map for each point, soft-maxed over all places; the point is its centre of mass.

    So the point is finer than the map's cells, and is differentiated through (Sun et al. 2018, "Integral human pose
    regression"; Nibali et al. 2018). `forward` returns the maps' logarithms (n, k, h, w) as its third tensor.
    """

    def __init__(self, channels: int, points: int, size: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, points, kernel_size=1)
        self.size = size
        nn.init.normal_(self.maps.weight, std=0.01)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, channels, h, w) to points, spreads and logarithms of the maps."""
        logits = _exactly(self.maps, features)
        height, width = logits.shape[-2:]
        logarithms = logits.flatten(2).log_softmax(dim=2).view(-1, logits.shape[1], height, width)
        mass = logarithms.exp()
        across, down = mass.sum(dim=2), mass.sum(dim=3)
        x, y = _centres(width, self.size, logits), _centres(height, self.size, logits)
        middle_x, middle_y = (across * x).sum(dim=2), (down * y).sum(dim=2)
        variance = (across * (x - middle_x.unsqueeze(2)) ** 2).sum(dim=2)
        variance = variance + (down * (y - middle_y.unsqueeze(2)) ** 2).sum(dim=2)
        spread = (variance / 2).clamp(min=(self.size * _MIN_SPREAD) ** 2).sqrt()
        return torch.stack([middle_x, middle_y], dim=2), spread, logarithms


class Coordinates(nn.Module):
    """Coordinates straight from the coarsest features, through a sigmoid that reaches a little beyond the square."""

    def __init__(self, body: Body, points: int, size: int, dropout: float) -> None:
        super().__init__()
        with torch.no_grad():
            training = body.training
            grid = body.eval()(torch.zeros(1, 3, size, size)).shape[-2:]
            body.train(training)
        self.size = size
        self.narrow = nn.Sequential(
            nn.Conv2d(body.channels, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(inplace=True)
        )
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(128 * grid[0] * grid[1], 512), nn.ReLU(inplace=True)
        )
        self.last = nn.Linear(512, points * 3)
        nn.init.normal_(self.last.weight, std=0.01)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(n, channels, h, w) to points and spreads."""
        raw = _exactly(self.last, self.hidden(self.narrow(features)))
        raw = raw.view(-1, raw.shape[1] // 3, 3)
        points = raw[..., :2].sigmoid() * (1 + 2 * _MARGIN) - _MARGIN
        spread = raw[..., 2].sigmoid() * (_MAX_SPREAD - _MIN_SPREAD) + _MIN_SPREAD
        return points * self.size, spread * self.size


def _exactly(layer: nn.Module, features: Tensor) -> Tensor:
    """The layer in float32, also where bfloat16 is used around it: that has three digits, and a point needs four."""
    found: Tensor
    if torch.is_autocast_enabled(features.device.type):
        with torch.autocast(features.device.type, enabled=False):
            found = layer(features.float())
    else:
        found = layer(features)
    return found


def _centres(count: int, size: int, like: Tensor) -> Tensor:
    """Where the middles of the cells are, in pixels."""
    return (torch.arange(count, device=like.device, dtype=torch.float32) + 0.5) * (size / count)


def keypoint_loss(found: Sequence[Tensor], target: Tensor, size: int, *, cell_spread: float = 1.0) -> Tensor:
    """The mean distance of points and targets (n, k, 2), NaN where one is missing, and what the head needs beside.

    The distance is in tenths of the square's side. For heat maps: the cross entropy with a Gaussian around the target
    of `cell_spread` cells. For coordinates: the likelihood of the distances under a Laplace distribution of the spread
    that was said; it teaches the spread and leaves the points alone.
    """
    points, spread = found[0], found[1]
    known = ~target.isnan().any(dim=2)
    count = known.sum().clamp(min=1)
    target = torch.where(known.unsqueeze(2), target, points.detach())
    distance = ((points - target).pow(2).sum(dim=2) + 1e-4).sqrt() * known
    loss = distance.sum() / count * (10 / size)
    if len(found) > 2:
        return loss + 0.1 * (_cross_entropy(found[2], target, size, cell_spread) * known).sum() / count
    spoken = distance.detach() / spread + 2 * spread.log()
    return loss + 0.1 * (spoken * known).sum() / count


def _cross_entropy(logarithms: Tensor, target: Tensor, size: int, cell_spread: float) -> Tensor:
    """Of each map (n, k, h, w) with a Gaussian around its target; both in float32."""
    height, width = logarithms.shape[-2:]
    across = _bell(target[..., 0], width, size, cell_spread)
    down = _bell(target[..., 1], height, size, cell_spread)
    expected = ((logarithms * across.unsqueeze(2)).sum(dim=3) * down).sum(dim=2)
    return -expected


def _bell(middle: Tensor, count: int, size: int, cell_spread: float) -> Tensor:
    """Shares (n, k, count) of a Gaussian around `middle` (n, k) that fall on each cell of an axis."""
    away = (_centres(count, size, middle) - middle.unsqueeze(2)) * (count / size) / cell_spread
    return (-0.5 * away**2).softmax(dim=2)


class FlipTTA(nn.Module):
    """Test-time augmentation: the mean over a picture and its mirror image; twice the cost."""

    twins: Tensor

    def __init__(self, network: nn.Module, twins: Sequence[int], size: int) -> None:
        """`twins` has the index of each point's mirror twin."""
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("twins", torch.tensor(twins))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As the network's own, without what only the loss needs."""
        points, spread = self.network(image)[:2]
        mirrored, other = self.network(image.flip(2))[:2]
        back = torch.stack([self.size - mirrored[..., 0], mirrored[..., 1]], dim=2)
        return (points + back[:, self.twins]) / 2, (spread + other[:, self.twins]) / 2


class ServedKeypoints(nn.Module):
    """What is exported: points in pixels of the square, and the probability that each is near enough.

    Near enough is a share of the face's (hand's, …) own size, so the size is taken from the points that were found.
    The logit is a straight line over the logarithm of how many spreads that distance is, with an offset for each point.
    """

    slope: Tensor
    offsets: Tensor

    def __init__(self, network: nn.Module, nearness: "Nearness", slope: float, offsets: Tensor) -> None:
        super().__init__()
        self.network, self.nearness = network, nearness
        self.register_buffer("slope", torch.tensor(slope))
        self.register_buffer("offsets", offsets.clone())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (n, size, size, 3) to points (n, k, 2) and confidences (n, k)."""
        found = self.network(image)
        points, spread = found[0], found[1]
        return points, (self.slope * self.nearness(points, spread) + self.offsets).sigmoid()


class Nearness(nn.Module):
    """How many spreads "near enough" is: the logarithm of share × size ÷ spread.

    The size is the distance between two of the points, or the diagonal of the box around all where none are named.
    """

    def __init__(self, between: tuple[int, int] | None, share: float) -> None:
        super().__init__()
        self.between, self.share = between, share

    def forward(self, points: Tensor, spread: Tensor) -> Tensor:
        """Points (n, k, 2) and spreads (n, k) to (n, k)."""
        if self.between is None:
            apart = points.amax(dim=1) - points.amin(dim=1)
        else:
            apart = points[:, self.between[0]] - points[:, self.between[1]]
        size = (apart.pow(2).sum(dim=1, keepdim=True) + 1.0).sqrt()
        return (self.share * size / spread).log()


def spoken_probability(nearness: Tensor) -> Tensor:
    """What the spread itself says before calibration: the share of a round Gaussian that lies near enough."""
    return 1 - (-0.5 * (2 * nearness).exp()).exp()
