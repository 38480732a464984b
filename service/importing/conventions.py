"""What a graph does not say about itself: how it expects pixels, and what its outputs mean."""

from dataclasses import dataclass, field
from typing import Any

from service.importing.errors import CannotImport
from service.importing.foreign_graph import Axis, GraphTensor

_IMAGES = ("classification", "keypoints", "segmentation", "super_resolution")


def _convention(default: Any, doc: str, *, tasks: tuple[str, ...], choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"doc": doc, "tasks": tasks, "choices": choices})


@dataclass(frozen=True)
class Conventions:
    """The conventions of the program that made the graph; empty values are recognised or have the stated default."""

    layout: str = _convention(
        "",
        "order of the axes of an image: batch, channels, height, width; or channels last (default: recognised)",
        tasks=_IMAGES,
        choices=("nchw", "nhwc"),
    )
    channels: str = _convention(
        "rgb", "order of the colours that the graph expects (default: rgb)", tasks=_IMAGES, choices=("rgb", "bgr")
    )
    pixels: str = _convention(
        "",
        "range of the pixels that the graph expects, before --mean and --std (default: 0..1; 0..255 for integers)",
        tasks=_IMAGES,
        choices=("0..1", "0..255", "-1..1"),
    )
    mean: tuple[float, ...] = _convention(
        (), "mean of each colour, which is subtracted: 0.485,0.456,0.406 for most torchvision networks", tasks=_IMAGES
    )
    std: tuple[float, ...] = _convention(
        (), "standard deviation of each colour, by which the difference is divided", tasks=_IMAGES
    )
    outputs: str = _convention(
        "",
        "whether the graph returns logits or probabilities (default: recognised)",
        tasks=("classification", "segmentation", "sentiment", "tabular"),
        choices=("logits", "probabilities"),
    )
    output_pixels: str = _convention(
        "",
        "range of the pixels that the graph returns (default: as --pixels)",
        tasks=("super_resolution",),
        choices=("0..1", "0..255", "-1..1"),
    )
    points: str = _convention(
        "pixels",
        "unit of the points: pixels of the graph's input, or fractions of its side (default: pixels)",
        tasks=("keypoints",),
        choices=("pixels", "fractions"),
    )
    interval: tuple[float, ...] = _convention(
        (),
        "ends of the prediction interval relative to the number, if the graph returns none: -12.5,14",
        tasks=("tabular",),
    )

    def __post_init__(self) -> None:
        """Raises CannotImport if numbers are missing or too many."""
        if bool(self.mean) != bool(self.std) or len(self.mean) != len(self.std):
            raise CannotImport("--mean and --std belong together, with as many numbers: one, or one for each colour.")
        if any(not value > 0 for value in self.std):
            raise CannotImport("--std: standard deviations are above 0.")
        if self.interval and (len(self.interval) != 2 or not self.interval[0] <= 0 <= self.interval[1]):
            raise CannotImport("--interval takes two numbers, the first at most 0 and the second at least 0: -12.5,14.")


@dataclass(frozen=True)
class ImageInput:
    """How the graph expects an image: its axes, its channels, and its size if that is fixed."""

    is_channels_first: bool
    channels: int
    height: int | None
    width: int | None


def read_image_input(tensor: GraphTensor, layout: str) -> ImageInput:
    """Recognise the layout of an image input; `layout` is `nchw`, `nhwc`, or empty. Raises CannotImport."""
    shape = tensor.shape
    if shape is None or len(shape) != 4:
        raise CannotImport(f"The graph's input {tensor} is not a batch of images, which has four axes.")
    first, last = shape[1], shape[3]
    is_first = layout == "nchw" if layout else first in (1, 3)
    if not layout and (first in (1, 3)) == (last in (1, 3)):
        raise CannotImport(f"Which axis of the graph's input {tensor} is colour is not clear: state it with --layout.")
    channels = first if is_first else last
    if channels not in (1, 3, None) and not isinstance(channels, str):
        raise CannotImport(f"The graph's input {tensor} has {channels} channels; an image has 3 (colour) or 1 (grey).")
    height, width = shape[2:] if is_first else shape[1:3]
    return ImageInput(is_first, channels if isinstance(channels, int) else 3, _fixed(height), _fixed(width))


def _fixed(axis: Axis) -> int | None:
    return axis if isinstance(axis, int) else None
