"""Which pixels belong to what?"""

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
    distinct_colours,
    from_run_lengths,
    overlay_jpeg,
    palette_png,
    run_lengths,
    stretched,
)
from tasks.comparison import equal_pixels, pixels_of, shared
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
"""Pixels of the network: what is smaller is no region but the noise of a border."""
_LONG = 2.0
"""How many times longer than the network's a picture's shape must be to be cut into windows."""
_MAX_WINDOWS = 24
_MAX_LABELS = 255
_OVERLAP = 0.25


class SegmentationRequest(Request):
    """A picture, and the form in which its mask is wanted."""

    image: ImageBytes
    mask: Annotated[
        Literal["png", "rle", "polygons", "none"],
        Field(description="The form of the mask: a palette PNG, COCO's run lengths, polygons, or only the shares."),
    ] = "png"
    overlay: Annotated[bool, Field(description="Also return the picture with the classes laid over it.")] = False


class ClassShare(BaseModel):
    """A label that occurs in the picture, and how much of the picture is of it."""

    label: str
    colour: Annotated[str, Field(description="Its colour in the mask's palette and in the overlay, #rrggbb.")]
    share: Annotated[float, Field(description="Of the picture's pixels.")]
    confidence: Annotated[float, Field(description="The mean calibrated probability of the label over its pixels.")]


class ClassRuns(BaseModel):
    """The pixels of a label as COCO's uncompressed run lengths."""

    label: str
    size: Annotated[tuple[int, int], Field(description="Height and width of the picture.")]
    counts: Annotated[
        list[int], Field(description="Column after column: pixels not of the label, of it, not of it, and so on.")
    ]


class LabelledRegion(BaseModel):
    """Pixels of one label that hang together, as polygons along the edges of pixels."""

    label: str
    area: Annotated[int, Field(description="In pixels of the picture.")]
    rings: Annotated[
        list[list[tuple[int, int]]],
        Field(
            description="Corners (x, y) of the picture's pixels: the outline clockwise, then the holes the other way."
        ),
    ]


class SegmentationAnswer(Answer):
    """The labels in the picture, the largest first, and the mask in the form that was asked for."""

    width: Annotated[int, Field(description="Of the picture that was sent, and of the mask.")]
    height: int
    classes: list[ClassShare]
    mask_png: Annotated[
        FileBytes | None,
        Field(description="A PNG whose pixels are indices of the model's labels and whose palette has their colours."),
    ] = None
    mask_rle: list[ClassRuns] | None = None
    polygons: Annotated[
        list[LabelledRegion] | None,
        Field(description="The largest first; regions smaller than 4 pixels of the network's input are left out."),
    ] = None
    overlay_jpeg: Annotated[
        FileBytes | None, Field(description="The picture with the classes laid over it, at most 1280 pixels long.")
    ] = None


@dataclass(frozen=True)
class ViewWindows:
    """What of a picture the network sees: the whole of it, or windows along its long side.

    Attributes:
        picture: small enough to be kept while the request waits.
        decoded: width and height of the image that the windows were cut from.
        frames: where the picture lies in each window's tensor.
        axis: along which the windows stand: 1 beside each other, 0 one below the other.
        boxes: each window's (left, top, right, bottom) in the decoded picture's pixels.
    """

    picture: DecodedImage
    decoded: tuple[int, int]
    frames: tuple[Frame, ...]
    axis: int
    boxes: tuple[tuple[int, int, int, int], ...]

    def places(self, axis: int, length: int) -> NDArray[np.intp]:
        """Which row (axis 0) or column (1) of the windows, put together along `axis`, each of the picture's is.

        The nearest one, of the window in whose middle it lies; `length` is that of one window.
        """
        size = (self.picture.height, self.picture.width)[axis]
        ratio = self.decoded[1 - axis] / size
        centres = np.arange(size) + 0.5
        spans = np.array([(box[1 - axis], box[3 - axis]) for box in self.boxes]) / ratio
        owner = np.zeros(size, np.intp)
        if axis == self.axis:
            owner = np.searchsorted((spans[:-1, 1] + spans[1:, 0]) / 2, centres, side="right")
        scales = np.array([(frame.scale_y, frame.scale_x)[axis] for frame in self.frames])
        offsets = np.array([(frame.offset_y, frame.offset_x)[axis] for frame in self.frames])
        first, end = np.rint(spans * scales[:, None] + offsets[:, None]).astype(np.intp).T
        found = np.floor(centres * scales[owner] + offsets[owner]).astype(np.intp)
        # What rounding could put on the border is of the picture.
        places: NDArray[np.intp] = owner * length + np.clip(found, first[owner], end[owner] - 1)
        return places


@dataclass(frozen=True)
class Segmentation(Task):
    """One label for each pixel of a picture.

    Attributes:
        labels: the classes, in the order of their indices in masks.
        width: of the network's input, in pixels.
        height: the same.
        fit: how a picture is brought to that size: whole with a border, or stretched.
        colours: of the labels, red, green and blue; none: the task's own choice.
        scene: which of the synthetic scenes is the example: one whose answer is clear.
    """

    labels: tuple[str, ...]
    width: int = 480
    height: int = 360
    fit: Literal["pad", "squash"] = "pad"
    colours: tuple[Colour, ...] = ()
    scene: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError: there is not a colour for each label, or there are more labels than a mask can hold."""
        if self.colours and len(self.colours) != len(self.labels):
            raise ValueError(f"There are {len(self.colours)} colours for {len(self.labels)} labels.")
        if len(self.labels) > _MAX_LABELS:
            raise ValueError(f"There are {len(self.labels)} labels; a mask of 8 bits holds {_MAX_LABELS}.")

    request_type = SegmentationRequest
    answer_type = SegmentationAnswer
    upload: ClassVar[Upload | None] = IMAGE_UPLOAD
    decoding_releases_gil: ClassVar[bool] = True
    golden_tolerance: ClassVar[float] = (
        1e-2  # Confidences are means over a class's pixels, of which a few may turn over.
    )
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
        """Pixels as they are: the graph casts and normalises."""
        return (TensorSpec("image", "uint8", (self.height, self.width, 3)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Each pixel's label by its index, and the calibrated probability of that label, times 255."""
        return (
            TensorSpec("mask", "uint8", (self.height, self.width), "class"),
            TensorSpec("confidence", "uint8", (self.height, self.width), "pixel"),
        )

    @property
    def palette(self) -> tuple[Colour, ...]:
        """A colour for each label."""
        return self.colours or distinct_colours(len(self.labels))

    def decode(self, request: SegmentationRequest, limits: Limits) -> DecodedImage:
        """The picture, 8-bit RGB and upright."""
        return decode_image(request.image, max_pixels=limits.pixels, enough=max(self.width, self.height))

    def windows(self, width: int, height: int) -> tuple[int, tuple[tuple[int, int, int, int], ...]]:
        """The boxes (left, top, right, bottom) of a picture that the network sees one by one, and their axis.

        One, unless the picture's shape is more than twice as long as the network's: else little of the network would
        see it. Windows are alike in size and overlap by a quarter, or less where there would be too many.
        """
        longer = width / height / (self.width / self.height)
        if 1 / _LONG <= longer <= _LONG:
            return 1, ((0, 0, width, height),)
        if longer > 1:
            spans = _spans(width, height * self.width / self.height)
            return 1, tuple((begin, 0, end, height) for begin, end in spans)
        spans = _spans(height, width * self.height / self.width)
        return 0, tuple((0, begin, width, end) for begin, end in spans)

    def preprocess(self, raw: DecodedImage) -> Samples:
        """The picture fitted to the network's size, or its windows, a sample each. The context is its ViewWindows."""
        axis, boxes = self.windows(*raw.image.size)
        seen = [self._fitted(raw, box) for box in boxes]
        arrays = {"image": np.stack([pixels for pixels, _ in seen])}
        small = thumbnail(raw, _MAX_OVERLAY_SIDE)
        context = ViewWindows(small, raw.image.size, tuple(frame for _, frame in seen), axis, boxes)
        return Samples(arrays, context, size_of_answer=raw.width * raw.height)

    def _fitted(self, picture: DecodedImage, box: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], Frame]:
        """A window's pixels, and where the whole picture lies in them."""
        image = picture.image
        if box == (0, 0, *image.size):
            return fit_image(picture, self.width, self.height, self.fit)
        part = image.crop(box)
        pixels, frame = fit_image(DecodedImage(part, *part.size), self.width, self.height, self.fit)
        return pixels, Frame(
            picture.width,
            picture.height,
            frame.scale_x * image.width / picture.width,
            frame.scale_y * image.height / picture.height,
            frame.offset_x - box[0] * frame.scale_x,
            frame.offset_y - box[1] * frame.scale_y,
        )

    def postprocess(self, outputs: Arrays, samples: Samples, request: SegmentationRequest) -> SegmentationAnswer:
        """The mask in the picture's own pixels, in the form that was asked for, and what it holds."""
        seen: ViewWindows = samples.context
        if int(outputs["mask"].max()) >= len(self.labels):
            raise InvalidOutput("The network gave a pixel a label that it does not have.")
        rows, columns = seen.places(0, self.height), seen.places(1, self.width)
        mask = stretched(np.concatenate(outputs["mask"], axis=seen.axis), rows, columns)
        confidence = stretched(np.concatenate(outputs["confidence"], axis=seen.axis), rows, columns)
        wanted = request.mask
        overlay = None
        if request.overlay:
            overlay = overlay_jpeg(seen.picture.image, mask, self.palette, longest=_MAX_OVERLAY_SIDE)
        return SegmentationAnswer(
            width=mask.width,
            height=mask.height,
            classes=self._shares(mask, confidence.small),
            mask_png=palette_png(mask.whole(), self.palette) if wanted == "png" else None,
            mask_rle=self._runs(mask.whole()) if wanted == "rle" else None,
            polygons=self._polygons(mask, seen) if wanted == "polygons" else None,
            overlay_jpeg=overlay,
        )

    def agreement(self, ours: SegmentationAnswer, theirs: SegmentationAnswer) -> float:
        """The share of equal pixels; of answers without a mask of pixels, what the labels' shares have in common."""
        masks = [self._pixels(answer) for answer in (ours, theirs)]
        if masks[0] is not None and masks[1] is not None:
            return equal_pixels(masks[0], masks[1])
        return shared(*({each.label: each.share for each in answer.classes} for answer in (ours, theirs)))

    def _pixels(self, answer: SegmentationAnswer) -> NDArray[np.uint8] | None:
        if answer.mask_png:
            return pixels_of(answer.mask_png)
        runs = {
            self.labels.index(each.label): each.counts for each in answer.mask_rle or () if each.label in self.labels
        }
        return from_run_lengths(runs, answer.height, answer.width) if runs else None

    def _shares(self, mask: StretchedMask, confidence: Array) -> list[ClassShare]:
        counts = mask.counts().ravel()
        pixels = np.bincount(mask.small.ravel(), counts, len(self.labels))
        levels = np.bincount(mask.small.ravel(), counts * confidence.ravel(), len(self.labels))
        found = [int(label) for label in np.argsort(-pixels, kind="stable") if pixels[label]]
        return [
            ClassShare(
                label=self.labels[label],
                colour="#{:02x}{:02x}{:02x}".format(*self.palette[label]),
                share=round(float(pixels[label] / counts.sum()), 6),
                confidence=round(float(levels[label] / pixels[label] / 255), 4),
            )
            for label in found
        ]

    def _runs(self, mask: NDArray[np.uint8]) -> list[ClassRuns]:
        height, width = mask.shape
        return [
            ClassRuns(label=self.labels[label], size=(height, width), counts=counts)
            for label, counts in run_lengths(mask).items()
        ]

    def _polygons(self, mask: StretchedMask, seen: ViewWindows) -> list[LabelledRegion]:
        smallest = _MIN_REGION_PIXELS / (seen.frames[0].scale_x * seen.frames[0].scale_y)
        found = []
        for region in mask.regions():
            if region.area >= smallest:
                corners = [[(x, y) for x, y in ring.tolist()] for ring in region.rings]
                found.append(LabelledRegion(label=self.labels[region.label], area=region.area, rings=corners))
        return sorted(found, key=lambda region: -region.area)

    def example(self) -> dict[str, Any]:
        """A synthetic scene, with its mask as a PNG."""
        return {"image": base64.b64encode(synthetic_scene(self.scene)).decode("ascii")}

    def examples(self) -> list[dict[str, Any]]:
        """The scene with its mask as a PNG, and with the overlay.

        Not as runs or polygons: a pixel that rounding turns over would change their whole list, and say no more.
        """
        body = self.example()
        return [body, {**body, "mask": "none", "overlay": True}]


def _spans(length: int, window: float) -> list[tuple[int, int]]:
    """(begin, end) of windows along a length: whole pixels, all of one size, from one end to the other."""
    count = math.ceil((length / window - _OVERLAP) / (1 - _OVERLAP))
    if count > _MAX_WINDOWS:
        count = _MAX_WINDOWS
        window = length / (count * (1 - _OVERLAP) + _OVERLAP)
    size = min(length, math.ceil(window))
    begins = np.linspace(0, length - size, count).round().astype(int).tolist()
    return [(begin, begin + size) for begin in begins]
