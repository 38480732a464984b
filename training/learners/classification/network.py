"""A picture classifier whose class-activation map costs nothing more than the answer."""

import torch
from torch import Tensor, nn

from training.vision.backbones import Body, PixelNetwork


class Classifier(PixelNetwork):
    """Body → dropout → 1×1 convolution → mean over the places.

    The convolution before the mean gives each class's evidence at each place; pooling it is the same as pooling the
    features first and applying a linear layer (Zhou et al. 2016), and the map is there without a backward pass.
    """

    def __init__(self, body: Body, classes: int, *, dropout: float) -> None:
        super().__init__()
        self.body = body
        # Whole channels: the same as dropping features after the pooling.
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(body.channels, classes, kernel_size=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels 0…255 (n, height, width, 3), uint8 or float32, to logits (n, classes) and map (n, classes, h, w)."""
        pictures = self.normalise(image)
        evidence = self.head(self.dropout(self.body(pictures))).float()
        return evidence.mean(dim=(2, 3)), evidence


class ServedClassifier(nn.Module):
    """What is exported: calibrated probabilities and the activation map."""

    temperature: Tensor

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (n, height, width, 3) to probabilities (n, classes) and map (n, classes, h, w)."""
        logits, evidence = self.network(image)
        return self._probabilities(logits / self.temperature), evidence

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)


class ServedTags(ServedClassifier):
    """The same for several labels: the probability of each, whatever the others'."""

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class FlipTTA(nn.Module):
    """Test-time augmentation: the mean over a picture and its mirror image; twice the cost."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As the network's own, with the map of the mirror image turned back."""
        logits, evidence = self.network(image)
        others, mirrored = self.network(image.flip(2))
        return (logits + others) / 2, (evidence + mirrored.flip(3)) / 2
