"""Segmentation: one label for each pixel of an image."""

import base64
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from tasks._examples import synthetic_scene
from tasks._images import IMAGE_UPLOAD, DecodedImage, Frame, ImageBytes, decode_image, fit_image, thumbnail
from tasks._masks import (
    Colour,
    StretchedMask,
    decode_run_lengths,
    distinct_colours,
    encode_run_lengths,
    overlay_jpeg,
    palette_png,
    stretch_mask,
)
from tasks.comparison import common_fraction, equal_pixel_fraction, read_pixels
from tasks.contract import (
    Answer,
    Array,
    Arrays,
    FileBytes,
    InvalidOutput,
    Limits,
    Representation,
    Request,
    Samples,
    Task,
    TensorSpec,
    Upload,
)

_MAX_OVERLAY_SIDE = 1280
_MIN_REGION_PIXELS = 4.0
"""Pixels of the network's input. Smaller regions are noise along a border."""
_MAX_ASPECT_FACTOR = 2.0
"""Images whose aspect ratio differs from the network's by more than this factor are cut into windows."""
_MAX_WINDOWS = 24
_MAX_LABELS = 255
_OVERLAP = 0.25
"""Overlap of neighbouring windows, as a fraction of a window."""


class SegmentationRequest(Request):
    """An image, and the representation of its mask."""

    image: ImageBytes
    mask: Annotated[
        Literal["png", "rle", "polygons", "none"],
        Field(description="The mask as a palette PNG, COCO run lengths or polygons; `none` for the fractions only."),
    ] = "png"
    overlay: Annotated[bool, Field(description="Also return the image blended with the colours of the classes.")] = (
        False
    )


class ClassShare(BaseModel):
    """A label that occurs in the image, and the fraction of the image that it covers."""

    label: str
    colour: Annotated[str, Field(description="The label's colour in the mask's palette and in the overlay, #rrggbb.")]
    share: Annotated[float, Field(description="The fraction of the image's pixels that have this label.")]
    confidence: Annotated[float, Field(description="The mean calibrated probability of the label over its pixels.")]


class ClassRuns(BaseModel):
    """The pixels of a label as COCO's uncompressed run lengths."""

    label: str
    size: Annotated[tuple[int, int], Field(description="Height and width of the image.")]
    counts: Annotated[
        list[int],
        Field(
            description="In column-major order: the number of pixels without the label, with it, without it, and so on."
        ),
    ]


class LabelledRegion(BaseModel):
    """A connected region of one label, as polygons along the edges of pixels."""

    label: str
    area: Annotated[int, Field(description="In pixels of the image.")]
    rings: Annotated[
        list[list[tuple[int, int]]],
        Field(
            description="Pixel corners (x, y) of the image: the outline, clockwise, then the holes, counter-clockwise."
        ),
    ]


class SegmentationAnswer(Answer):
    """The labels in the image, largest first, and the mask in the requested representation."""

    width: Annotated[int, Field(description="Width of the uploaded image and of the mask, in pixels.")]
    height: int
    classes: list[ClassShare]
    mask_png: Annotated[
        FileBytes | None,
        Field(description="A palette PNG: the pixels are indices of the model's labels, the palette their colours."),
    ] = None
    mask_rle: list[ClassRuns] | None = None
    polygons: Annotated[
        list[LabelledRegion] | None,
        Field(description="Largest first; regions smaller than 4 pixels of the network's input are omitted."),
    ] = None
    overlay_jpeg: Annotated[
        FileBytes | None,
        Field(description="The image blended with the colours of the classes, at most 1280 pixels a side."),
    ] = None


@dataclass(frozen=True)
class ViewWindows:
    """The parts of an image that the network sees: the whole image, or windows along its longer side.

    Attributes:
        thumbnail: the image, scaled down to be kept while the request waits.
        decoded_size: width and height of the image from which the windows were cut.
        frames: the position of the image in the tensor of each window.
        axis: the axis along which the windows are arranged: 0 vertically, 1 horizontally.
        boxes: (left, top, right, bottom) of each window, in pixels of the decoded image.
    """

    thumbnail: DecodedImage
    decoded_size: tuple[int, int]
    frames: tuple[Frame, ...]
    axis: int
    boxes: tuple[tuple[int, int, int, int], ...]

    def source_indices(self, axis: int, length: int) -> NDArray[np.intp]:
        """Map each row (axis 0) or column (axis 1) of the image to one of the concatenated windows.

        Where windows overlap, the window whose centre is nearer is used. `length` is the length of one window.
        """
        size = (self.thumbnail.height, self.thumbnail.width)[axis]
        ratio = self.decoded_size[1 - axis] / size
        centres = np.arange(size) + 0.5
        spans = np.array([(box[1 - axis], box[3 - axis]) for box in self.boxes]) / ratio
        window = np.zeros(size, np.intp)
        if axis == self.axis:
            window = np.searchsorted((spans[:-1, 1] + spans[1:, 0]) / 2, centres, side="right")
        scales = np.array([(frame.scale_y, frame.scale_x)[axis] for frame in self.frames])
        offsets = np.array([(frame.offset_y, frame.offset_x)[axis] for frame in self.frames])
        first, end = np.rint(spans * scales[:, None] + offsets[:, None]).astype(np.intp).T
        position = np.floor(centres * scales[window] + offsets[window]).astype(np.intp)
        # Rounding must not move a pixel of the image onto the border.
        indices: NDArray[np.intp] = window * length + np.clip(position, first[window], end[window] - 1)
        return indices


@dataclass(frozen=True)
class Segmentation(Task):
    """One label for each pixel of an image.

    Attributes:
        labels: the classes, in the order of their indices in masks.
        width: width of the network's input, in pixels.
        height: height of the network's input, in pixels.
        fit: how an image is fitted to that size: padded or stretched.
        colours: red, green and blue of each label; empty for default colours.
        scene: the seed of the synthetic example scene; training picks one with a clear answer.
    """

    labels: tuple[str, ...]
    width: int = 480
    height: int = 360
    fit: Literal["pad", "squash"] = "pad"
    colours: tuple[Colour, ...] = ()
    scene: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError if there is not one colour per label, or there are more labels than a mask can hold."""
        if self.colours and len(self.colours) != len(self.labels):
            raise ValueError(f"There are {len(self.colours)} colours for {len(self.labels)} labels.")
        if len(self.labels) > _MAX_LABELS:
            raise ValueError(f"There are {len(self.labels)} labels; an 8-bit mask can hold {_MAX_LABELS}.")

    request_type = SegmentationRequest
    answer_type = SegmentationAnswer
    upload: ClassVar[Upload | None] = IMAGE_UPLOAD
    decodes_files: ClassVar[bool] = True
    golden_tolerance: ClassVar[float] = 1e-2  # Confidences are means over a class's pixels, and a few may change class.
    representations: ClassVar[tuple[Representation, ...]] = (
        Representation("application/json"),
        Representation("image/png", {"mask": "png"}, file="mask_png"),
        Representation("application/json;mask=png", {"mask": "png"}),
        Representation("application/json;mask=rle", {"mask": "rle"}),
        Representation("application/json;mask=polygons", {"mask": "polygons"}),
        Representation("image/jpeg", {"mask": "none", "overlay": True}, file="overlay_jpeg"),
    )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Unscaled pixels; the graph casts and normalises."""
        return (TensorSpec("image", "uint8", (self.height, self.width, 3)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The index of each pixel's label, and the calibrated probability of that label times 255."""
        return (
            TensorSpec("mask", "uint8", (self.height, self.width), "class"),
            TensorSpec("confidence", "uint8", (self.height, self.width), "pixel"),
        )

    @property
    def palette(self) -> tuple[Colour, ...]:
        """A colour for each label."""
        return self.colours or distinct_colours(len(self.labels))

    def decode(self, request: SegmentationRequest, limits: Limits) -> DecodedImage:
        """Decode the image to upright 8-bit RGB."""
        return decode_image(request.image, max_pixels=limits.pixels, min_side=max(self.width, self.height))

    def windows(self, width: int, height: int) -> tuple[int, tuple[tuple[int, int, int, int], ...]]:
        """Return the axis and the boxes (left, top, right, bottom) of the windows of an image.

        There is one window, unless the aspect ratio differs from the network's by more than a factor of two: then the
        image would fill little of the network's input. Windows have equal sizes and overlap by a quarter, or less if
        there would be too many.
        """
        aspect_factor = width / height / (self.width / self.height)
        if 1 / _MAX_ASPECT_FACTOR <= aspect_factor <= _MAX_ASPECT_FACTOR:
            return 1, ((0, 0, width, height),)
        if aspect_factor > 1:
            spans = _window_spans(width, height * self.width / self.height)
            return 1, tuple((start, 0, end, height) for start, end in spans)
        spans = _window_spans(height, width * self.height / self.width)
        return 0, tuple((0, start, width, end) for start, end in spans)

    def preprocess(self, raw: DecodedImage) -> Samples:
        """Fit the image, or each of its windows, to the network's size. The context is its ViewWindows."""
        axis, boxes = self.windows(*raw.image.size)
        fitted = [self._fit_window(raw, box) for box in boxes]
        arrays = {"image": np.stack([pixels for pixels, _ in fitted])}
        small = thumbnail(raw, _MAX_OVERLAY_SIDE)
        context = ViewWindows(small, raw.image.size, tuple(frame for _, frame in fitted), axis, boxes)
        return Samples(arrays, context, answer_size=raw.width * raw.height)

    def _fit_window(self, decoded: DecodedImage, box: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], Frame]:
        """Return the pixels of a window, and the position of the whole image in them."""
        image = decoded.image
        if box == (0, 0, *image.size):
            return fit_image(decoded, self.width, self.height, self.fit)
        window = image.crop(box)
        pixels, frame = fit_image(DecodedImage(window, *window.size), self.width, self.height, self.fit)
        return pixels, Frame(
            decoded.width,
            decoded.height,
            frame.scale_x * image.width / decoded.width,
            frame.scale_y * image.height / decoded.height,
            frame.offset_x - box[0] * frame.scale_x,
            frame.offset_y - box[1] * frame.scale_y,
        )

    def postprocess(self, outputs: Arrays, samples: Samples, request: SegmentationRequest) -> SegmentationAnswer:
        """Scale the mask to the image, and return it in the requested representation with the labels it contains."""
        view: ViewWindows = samples.context
        if int(outputs["mask"].max()) >= len(self.labels):
            raise InvalidOutput("The network returned a label index that does not exist.")
        rows, columns = view.source_indices(0, self.height), view.source_indices(1, self.width)
        mask = stretch_mask(np.concatenate(outputs["mask"], axis=view.axis), rows, columns)
        confidence = stretch_mask(np.concatenate(outputs["confidence"], axis=view.axis), rows, columns)
        overlay = None
        if request.overlay:
            overlay = overlay_jpeg(view.thumbnail.image, mask, self.palette, max_side=_MAX_OVERLAY_SIDE)
        return SegmentationAnswer(
            width=mask.width,
            height=mask.height,
            classes=self._class_fractions(mask, confidence.small),
            mask_png=palette_png(mask.expand(), self.palette) if request.mask == "png" else None,
            mask_rle=self._class_runs(mask.expand()) if request.mask == "rle" else None,
            polygons=self._polygons(mask, view) if request.mask == "polygons" else None,
            overlay_jpeg=overlay,
        )

    def agreement(self, ours: SegmentationAnswer, theirs: SegmentationAnswer) -> float:
        """Return the fraction of equal pixels or, without a mask in both, what the class fractions have in common."""
        masks = [self._decode_mask(answer) for answer in (ours, theirs)]
        if masks[0] is not None and masks[1] is not None:
            return equal_pixel_fraction(masks[0], masks[1])
        return common_fraction(*({entry.label: entry.share for entry in answer.classes} for answer in (ours, theirs)))

    def _decode_mask(self, answer: SegmentationAnswer) -> NDArray[np.uint8] | None:
        if answer.mask_png:
            return read_pixels(answer.mask_png)
        run_lengths = {
            self.labels.index(runs.label): runs.counts for runs in answer.mask_rle or () if runs.label in self.labels
        }
        return decode_run_lengths(run_lengths, answer.height, answer.width) if run_lengths else None

    def _class_fractions(self, mask: StretchedMask, confidence: Array) -> list[ClassShare]:
        counts = mask.counts().ravel()
        pixels = np.bincount(mask.small.ravel(), counts, len(self.labels))
        levels = np.bincount(mask.small.ravel(), counts * confidence.ravel(), len(self.labels))
        present = [int(label) for label in np.argsort(-pixels, kind="stable") if pixels[label]]
        return [
            ClassShare(
                label=self.labels[label],
                colour="#{:02x}{:02x}{:02x}".format(*self.palette[label]),
                share=round(float(pixels[label] / counts.sum()), 6),
                confidence=round(float(levels[label] / pixels[label] / 255), 4),
            )
            for label in present
        ]

    def _class_runs(self, mask: NDArray[np.uint8]) -> list[ClassRuns]:
        height, width = mask.shape
        return [
            ClassRuns(label=self.labels[label], size=(height, width), counts=counts)
            for label, counts in encode_run_lengths(mask).items()
        ]

    def _polygons(self, mask: StretchedMask, view: ViewWindows) -> list[LabelledRegion]:
        min_area = _MIN_REGION_PIXELS / (view.frames[0].scale_x * view.frames[0].scale_y)
        regions = []
        for region in mask.regions():
            if region.area >= min_area:
                rings = [[(x, y) for x, y in ring.tolist()] for ring in region.rings]
                regions.append(LabelledRegion(label=self.labels[region.label], area=region.area, rings=rings))
        return sorted(regions, key=lambda region: -region.area)

    def example(self) -> dict[str, Any]:
        """Return a request with a synthetic scene, answered with a PNG mask."""
        return {"image": base64.b64encode(synthetic_scene(self.scene)).decode("ascii")}

    def examples(self) -> list[dict[str, Any]]:
        """Return requests for a PNG mask and for an overlay.

        Not for run lengths or polygons: a single pixel that rounding changes would alter their whole lists.
        """
        body = self.example()
        return [body, {**body, "mask": "none", "overlay": True}]


def _window_spans(length: int, window: float) -> list[tuple[int, int]]:
    """Return (start, end) of windows that cover a length: whole pixels, all of the same size."""
    count = math.ceil((length / window - _OVERLAP) / (1 - _OVERLAP))
    if count > _MAX_WINDOWS:
        count = _MAX_WINDOWS
        window = length / (count * (1 - _OVERLAP) + _OVERLAP)
    size = min(length, math.ceil(window))
    starts = np.linspace(0, length - size, count).round().astype(int).tolist()
    return [(start, start + size) for start in starts]
