"""Where are the points?"""

import base64
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from tasks._drawing import Points, _coloured, with_points
from tasks._examples import synthetic_face
from tasks._images import (
    IMAGE_UPLOAD,
    DecodedImage,
    FileKind,
    Fit,
    Frame,
    ImageBytes,
    decode_image,
    encoded,
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

_NEAR = 0.05
_OVERLAY_SIDES = (512, 1280)
"""Between these lies the longer side of an overlay, in pixels: on fewer, dots would hide what they mark."""

OverlayKind = Annotated[FileKind, Field(description="The kind of file that the overlay is.")]


class KeypointsRequest(Request):
    """A picture, and whether to draw the points on it."""

    image: ImageBytes
    overlay: Annotated[bool, Field(description="Also return the picture with the points drawn on it.")] = False
    overlay_kind: OverlayKind = "jpeg"


class Keypoint(BaseModel):
    """A point, in pixels from the upper left corner of the picture that was sent."""

    name: str
    x: float
    y: float
    confidence: Annotated[
        float,
        Field(description="The calibrated probability that the point is nearly right; the card says how near."),
    ]


class Overlay(BaseModel):
    """The picture with its points, orange where they are doubtful and green where they are sure."""

    width: int
    height: int
    file: FileBytes


class KeypointsAnswer(Answer):
    """Each point, in the task's order, and the size of the picture they lie in."""

    width: int
    height: int
    points: list[Keypoint]
    overlay: Overlay | None = None


@dataclass(frozen=True)
class Keypoints(Task):
    """Named points of the one thing that a picture shows.

    Attributes:
        names: of the points, in the order of the network's outputs.
        size: side length of the network's input, in pixels.
        fit: how a picture is brought to that square; "crop" would lose points.
        links: pairs of points, by their indices, that an overlay joins with lines.
    """

    names: tuple[str, ...]
    size: int = 128
    fit: Fit = "pad"
    links: tuple[tuple[int, int], ...] = ()

    request_type = KeypointsRequest
    answer_type = KeypointsAnswer
    upload: ClassVar[Upload | None] = IMAGE_UPLOAD
    decoding_releases_gil: ClassVar[bool] = True
    representations: ClassVar[tuple[Representation, ...]] = (
        Representation("application/json"),
        Representation("image/jpeg", {"overlay": True, "overlay_kind": "jpeg"}, file="overlay.file"),
        Representation("image/png", {"overlay": True, "overlay_kind": "png"}, file="overlay.file"),
        Representation("image/webp", {"overlay": True, "overlay_kind": "webp"}, file="overlay.file"),
    )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Pixels as they are: the graph casts and normalises."""
        return (TensorSpec("image", "uint8", (self.size, self.size, 3)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """X and y in pixels of the network's square, and calibrated confidences."""
        count = len(self.names)
        return (TensorSpec("points", "float32", (count, 2)), TensorSpec("confidence", "float32", (count,)))

    def decode(self, request: KeypointsRequest, limits: Limits) -> DecodedImage:
        """The picture, 8-bit RGB and upright; large enough for an overlay, whether one is asked for or not."""
        return decode_image(request.image, max_pixels=limits.pixels, enough=max(self.size, _OVERLAY_SIDES[0]))

    def preprocess(self, raw: DecodedImage) -> Samples:
        """One sample: the picture fitted to the network's square. The context is its Frame, and the picture."""
        pixels, frame = fit_image(raw, self.size, self.size, self.fit)
        return Samples({"image": pixels[np.newaxis]}, (frame, thumbnail(raw, _OVERLAY_SIDES[1])))

    def postprocess(self, outputs: Arrays, samples: Samples, request: KeypointsRequest) -> KeypointsAnswer:
        """The points led back into the picture and kept within it, and drawn where that was asked for."""
        found, confidence = outputs["points"][0], outputs["confidence"][0]
        if not (np.isfinite(found).all() and np.isfinite(confidence).all()):
            raise InvalidOutput("The network gave no finite points for this picture.")
        frame, picture = samples.context
        points = placed(found, frame)
        return KeypointsAnswer(
            width=frame.width,
            height=frame.height,
            points=[
                Keypoint(name=name, x=round(float(x), 3), y=round(float(y), 3), confidence=round(float(sure), 6))
                for name, (x, y), sure in zip(self.names, points, confidence, strict=True)
            ],
            overlay=self._overlay(picture, points, confidence, request.overlay_kind) if request.overlay else None,
        )

    def agreement(self, ours: KeypointsAnswer, theirs: KeypointsAnswer) -> float:
        """The share of points that lie near each other: within 5 % of the picture's diagonal."""
        near = _NEAR * math.hypot(ours.width, ours.height)
        places = {point.name: (point.x, point.y) for point in theirs.points}
        found = [
            point.name in places and math.dist((point.x, point.y), places[point.name]) <= near for point in ours.points
        ]
        return sum(found) / max(len(found), len(places), 1)

    def _overlay(self, picture: DecodedImage, points: Points, confidence: Points, kind: FileKind) -> Overlay:
        longer = max(picture.width, picture.height)
        ratio = min(max(longer, _OVERLAY_SIDES[0]), _OVERLAY_SIDES[1]) / longer
        width, height = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
        small = picture.image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
        scale = (width / picture.width, height / picture.height)
        pixels = with_points(np.asarray(small), points * scale, self.links, colours=_coloured(confidence))
        return Overlay(width=width, height=height, file=encoded(pixels, kind))

    def example(self) -> dict[str, Any]:
        """A face that somebody drew: nobody's."""
        return {"image": base64.b64encode(synthetic_face()).decode("ascii")}

    def examples(self) -> list[dict[str, Any]]:
        """The drawn face, as points and with an overlay."""
        return [self.example(), {**self.example(), "overlay": True}]


def placed(points: Points, frame: Frame) -> Points:
    """Points (k, 2) of the network's square as points of the picture, moved to its nearest edge where outside."""
    return frame.to_image(points.astype(np.float64)).clip(0, (frame.width, frame.height))
