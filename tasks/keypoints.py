"""Keypoints: the positions of named points on the object in an image."""

import base64
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from tasks._drawing import Points, confidence_colours, draw_points
from tasks._examples import synthetic_face
from tasks._images import (
    IMAGE_UPLOAD,
    DecodedImage,
    FileKind,
    Fit,
    Frame,
    ImageBytes,
    decode_image,
    encode_image,
    fit_image,
    thumbnail,
)
from tasks.contract import (
    Answer,
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

_MAX_AGREEING_DISTANCE = 0.05
"""Points at most this far apart agree; as a fraction of the image's diagonal."""
_OVERLAY_SIDES = (512, 1280)
"""Minimum and maximum of the longer side of an overlay, in pixels. On smaller overlays, dots would hide details."""

OverlayKind = Annotated[FileKind, Field(description="The file format of the overlay.")]


class KeypointsRequest(Request):
    """An image, and whether to draw the points on it."""

    image: ImageBytes
    overlay: Annotated[bool, Field(description="Also return the image with the points drawn on it.")] = False
    overlay_kind: OverlayKind = "jpeg"


class Keypoint(BaseModel):
    """A point, in pixels from the upper left corner of the uploaded image."""

    name: str
    x: float
    y: float
    confidence: Annotated[
        float,
        Field(description="The calibrated probability that the point is close to the true one; see the model's card."),
    ]


class Overlay(BaseModel):
    """The image with the points drawn on it, coloured by confidence from orange (0) to green (1)."""

    width: int
    height: int
    file: FileBytes


class KeypointsAnswer(Answer):
    """The points, in the order of the task's names, and the size of the uploaded image."""

    width: int
    height: int
    points: list[Keypoint]
    overlay: Overlay | None = None


@dataclass(frozen=True)
class Keypoints(Task):
    """Named points of the single object in an image.

    Attributes:
        names: the names of the points, in the order of the network's outputs.
        size: side length of the network's input, in pixels.
        fit: how an image is fitted to that square; "crop" could lose points.
        links: pairs of point indices that an overlay connects with lines.
    """

    names: tuple[str, ...]
    size: int = 128
    fit: Fit = "pad"
    links: tuple[tuple[int, int], ...] = ()

    request_type = KeypointsRequest
    answer_type = KeypointsAnswer
    upload: ClassVar[Upload | None] = IMAGE_UPLOAD
    decodes_files: ClassVar[bool] = True
    representations: ClassVar[tuple[Representation, ...]] = (
        Representation("application/json"),
        Representation("image/jpeg", {"overlay": True, "overlay_kind": "jpeg"}, file="overlay.file"),
        Representation("image/png", {"overlay": True, "overlay_kind": "png"}, file="overlay.file"),
        Representation("image/webp", {"overlay": True, "overlay_kind": "webp"}, file="overlay.file"),
    )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Unscaled pixels; the graph casts and normalises."""
        return (TensorSpec("image", "uint8", (self.size, self.size, 3)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The x and y coordinates in pixels of the network's square, and calibrated confidences."""
        count = len(self.names)
        return (TensorSpec("points", "float32", (count, 2)), TensorSpec("confidence", "float32", (count,)))

    def decode(self, request: KeypointsRequest, limits: Limits) -> DecodedImage:
        """Decode the image to upright 8-bit RGB, always large enough for an overlay."""
        return decode_image(request.image, max_pixels=limits.pixels, min_side=max(self.size, _OVERLAY_SIDES[0]))

    def preprocess(self, raw: DecodedImage) -> Samples:
        """Fit the image to the network's square: one sample. The context is its Frame and a thumbnail."""
        pixels, frame = fit_image(raw, self.size, self.size, self.fit)
        return Samples({"image": pixels[np.newaxis]}, (frame, thumbnail(raw, _OVERLAY_SIDES[1])))

    def postprocess(self, outputs: Arrays, samples: Samples, request: KeypointsRequest) -> KeypointsAnswer:
        """Map the points back to the image, clipped to its edges, and draw them if requested."""
        network_points, confidence = outputs["points"][0], outputs["confidence"][0]
        if not (np.isfinite(network_points).all() and np.isfinite(confidence).all()):
            raise InvalidOutput("The network returned no finite points for this image.")
        frame, small = samples.context
        points = to_image_points(network_points, frame)
        return KeypointsAnswer(
            width=frame.width,
            height=frame.height,
            points=[
                Keypoint(name=name, x=round(float(x), 3), y=round(float(y), 3), confidence=round(float(score), 6))
                for name, (x, y), score in zip(self.names, points, confidence, strict=True)
            ],
            overlay=self._overlay(small, points, confidence, request.overlay_kind) if request.overlay else None,
        )

    def agreement(self, ours: KeypointsAnswer, theirs: KeypointsAnswer) -> float:
        """Return the fraction of points whose distance is at most 5 % of the image's diagonal."""
        max_distance = _MAX_AGREEING_DISTANCE * math.hypot(ours.width, ours.height)
        positions = {point.name: (point.x, point.y) for point in theirs.points}
        agreeing = [
            point.name in positions and math.dist((point.x, point.y), positions[point.name]) <= max_distance
            for point in ours.points
        ]
        return sum(agreeing) / max(len(agreeing), len(positions), 1)

    def _overlay(self, decoded: DecodedImage, points: Points, confidence: Points, kind: FileKind) -> Overlay:
        longer = max(decoded.width, decoded.height)
        ratio = min(max(longer, _OVERLAY_SIDES[0]), _OVERLAY_SIDES[1]) / longer
        width, height = max(1, round(decoded.width * ratio)), max(1, round(decoded.height * ratio))
        image = decoded.image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
        scale = (width / decoded.width, height / decoded.height)
        colours = confidence_colours(confidence)
        pixels = draw_points(np.asarray(image), points * scale, self.links, colours=colours)
        return Overlay(width=width, height=height, file=encode_image(pixels, kind))

    def example(self) -> dict[str, Any]:
        """Return a request with a drawn face."""
        return {"image": base64.b64encode(synthetic_face()).decode("ascii")}

    def examples(self) -> list[dict[str, Any]]:
        """Return the example without and with an overlay."""
        return [self.example(), {**self.example(), "overlay": True}]


def to_image_points(points: Points, frame: Frame) -> Points:
    """Map points (k, 2) of the network's square to points of the image, clipped to its edges."""
    return frame.to_image(points.astype(np.float64)).clip(0, (frame.width, frame.height))
