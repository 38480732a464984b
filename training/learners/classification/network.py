"""An image classifier that returns a class activation map at no extra cost."""

import torch
from torch import Tensor, nn

from training.vision.backbones import Body, PixelNetwork


class Classifier(PixelNetwork):
    """Body → dropout → 1×1 convolution → mean over all positions.

    The convolution before the mean gives the evidence for each class at each position. Pooling the evidence gives the
    same logits as pooling the features and applying a linear layer (Zhou et al. 2016), so the activation map needs no
    backward pass.
    """

    def __init__(self, body: Body, classes: int, *, dropout: float) -> None:
        super().__init__()
        self.body = body
        # Dropping whole channels is the same as dropping features after pooling.
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(body.channels, classes, kernel_size=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes) and activation map (n, classes, h, w).

        `image` holds pixel values 0…255, (n, height, width, 3), uint8 or float32.
        """
        features = self.body(self.normalise(image))
        evidence = self.head(self.dropout(features)).float()
        return evidence.mean(dim=(2, 3)), evidence


class ServedClassifier(nn.Module):
    """The exported module: calibrated probabilities and the activation map."""

    temperature: Tensor

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities (n, classes) and map (n, classes, h, w) for uint8 images (n, height, width, 3)."""
        logits, evidence = self.network(image)
        return self.probabilities(logits / self.temperature), evidence

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities (n, classes), which sum to 1 for each image."""
        return logits.softmax(dim=1)


class ServedMultiLabelClassifier(ServedClassifier):
    """The exported module for several labels per image: an independent probability for each label."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities (n, classes), each between 0 and 1."""
        return logits.sigmoid()


class FlipTTA(nn.Module):
    """Test-time augmentation: averages over the image and its mirror image, at twice the cost."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean logits and the mean map, with the map of the mirror image flipped back."""
        logits, evidence = self.network(image)
        mirrored_logits, mirrored_evidence = self.network(image.flip(2))
        return (logits + mirrored_logits) / 2, (evidence + mirrored_evidence.flip(3)) / 2
