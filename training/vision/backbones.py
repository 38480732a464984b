"""torchvision's networks without their heads, from images to feature maps."""

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from training.core.errors import CannotTrain
from training.core.sources import Archive, Source, SourceFetcher
from training.engine import checkpoint

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels, RGB in 0…1, with which pretrained networks were trained."""
_HEADS = ("classifier.", "fc.", "head.", "aux")
_MIRRORED = {
    "mobilenet_v2": Archive(
        "pretrained/mobilenet_v2_imagenet1k.pth",
        "00c0585dbd87b34edd66ec6848bce3e2353003cdbce798f4b3bdf399d131e28f",
        14_256_075,
    )
}


class PixelNetwork(nn.Module):
    """A network that takes raw pixels and normalises them itself."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 255)

    def normalise(self, image: Tensor) -> Tensor:
        """Normalise pixels 0…255 (n, height, width, 3), uint8 or float32, to float32 (n, 3, height, width)."""
        return (image.permute(0, 3, 1, 2).float() - self.mean) / self.std


class Body(nn.Module):
    """The part of a torchvision network before its pooling.

    Attributes:
        blocks: its layers in order, from the image on.
        channels: number of channels of the feature map it returns.
    """

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks
        with torch.no_grad():
            self.channels = int(blocks.eval()(torch.zeros(1, 3, 64, 64)).shape[1])
        blocks.train()

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 (n, 3, height, width), normalised, to (n, channels, about height/32, about width/32)."""
        features: Tensor = self.blocks(images)
        return features

    def halves(self) -> tuple[tuple[nn.Parameter, ...], tuple[nn.Parameter, ...]]:
        """Return the parameters of the layers near the image, and those of the others.

        Each half has about as many convolutions and linear layers; what belongs together, such as a residual block, is
        not divided.
        """
        blocks = list(_residual_blocks(self.blocks))
        counts = torch.tensor([_count_layers(block) for block in blocks]).cumsum(0)
        middle = int((counts <= counts[-1] / 2).sum())
        lower, upper = (nn.ModuleList(part).parameters() for part in (blocks[:middle], blocks[middle:]))
        return tuple(lower), tuple(upper)


def _residual_blocks(layers: nn.Module) -> Iterator[nn.Module]:
    """Yield the smallest parts that run one after the other; a dense block (a ModuleDict) is such a sequence too."""
    for layer in layers.children():
        if isinstance(layer, nn.Sequential | nn.ModuleDict):
            yield from _residual_blocks(layer)
        else:
            yield layer


def _count_layers(block: nn.Module) -> int:
    return sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in block.modules())


def load_body(name: str, weights: Path | None) -> Body:
    """Return the body of the torchvision network of this name, with weights from a file or random ones.

    Raises CannotTrain if there is no such network, it has no feature map, or the file does not match it.
    """
    from torchvision import models  # Imported here: it takes seconds, and not every command needs it.

    if name not in models.list_models(module=models):
        raise CannotTrain(f"torchvision has no network named '{name}'; choose one of {', '.join(_supported())}.")
    network = models.get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {}))
    if weights:
        _load(network, name, weights)
    blocks = _blocks(network)
    if blocks is None:
        raise CannotTrain(f"'{name}' has no feature map to pool; choose one of {', '.join(_supported())}.")
    return Body(blocks)


def _supported() -> list[str]:
    from torchvision import models  # Imported here: it takes seconds, and not every command needs it.

    families = (
        "convnext",
        "densenet",
        "efficientnet",
        "mnasnet",
        "mobilenet",
        "regnet",
        "resne",
        "shuffle",
        "vgg",
        "wide",
    )
    return [name for name in models.list_models(module=models) if name.startswith(families)]


def _blocks(network: nn.Module) -> nn.Sequential | None:
    """The layers before the pooling; None where the network has another structure."""
    children = OrderedDict(network.named_children())
    if "trunk_output" in children:  # RegNet
        return nn.Sequential(children["stem"], *children["trunk_output"].children())
    if "features" in children and isinstance(children["features"], nn.Sequential):
        layers = list(children["features"].children())
        # DenseNet applies its last activation outside `features`.
        return nn.Sequential(*layers, nn.ReLU()) if "DenseNet" in type(network).__name__ else nn.Sequential(*layers)
    if "layers" in children and isinstance(children["layers"], nn.Sequential):  # MNASNet
        return nn.Sequential(*children["layers"].children())
    if "layer4" in children or "stage4" in children:  # ResNet, ShuffleNet
        return nn.Sequential(*(layer for key, layer in children.items() if key not in ("avgpool", "fc")))
    return None


def _load(network: nn.Module, name: str, weights: Path) -> None:
    loaded = checkpoint.load(weights)
    expected = network.state_dict()
    matching = {
        key: value
        for key, value in loaded.items()
        if key in expected and isinstance(value, Tensor) and value.shape == expected[key].shape
    }
    missing = [key for key in expected if key not in matching and not key.startswith(_HEADS)]
    if missing:
        total = sum(not key.startswith(_HEADS) for key in expected)
        raise CannotTrain(
            f"{weights} does not contain the weights of {name}: {len(missing)} of the {total} tensors of its body are "
            f"missing or have another shape, starting with '{missing[0]}'."
        )
    network.load_state_dict(matching, strict=False)


def weights_file(name: str, weights: str, fetcher: SourceFetcher) -> Path | None:
    """Return the file of the weights; `weights` is `imagenet` (torchvision's own), a path, or `none`.

    torchvision's file names end with the first eight digits of their SHA-256, which are verified. Raises CannotTrain.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        if not Path(weights).is_file():
            raise CannotTrain(f"--weights {weights}: no such file; use a path, 'imagenet' or 'none'.")
        return Path(weights)
    address = _MOBILENET_V2 if name == "mobilenet_v2" else _official_address(name)
    prefix = address.rpartition("-")[2].partition(".")[0]
    mirrored = _MIRRORED.get(name, Archive(f"pretrained/{name}_imagenet1k.pth"))
    return fetcher.fetch(Source(f"{name}.pth", Archive(address, prefix), mirrored, alternative=_WITHOUT_WEIGHTS))


def _official_address(name: str) -> str:
    """The address of torchvision's weights. Raises CannotTrain if it has no such network."""
    from torchvision import models  # Imported here: it takes seconds, which the default backbone does not need.

    if name not in models.list_models(module=models):
        raise CannotTrain(f"torchvision has no network named '{name}'; choose one of {', '.join(_supported())}.")
    address: str = models.get_model_weights(name).DEFAULT.url
    return address


_MOBILENET_V2 = "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"
"""The first version of the weights: its features transfer better than those of the second, torchvision's default."""
_WITHOUT_WEIGHTS = "train without pretrained weights: --weights none"
