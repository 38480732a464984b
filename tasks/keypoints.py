"""Where are the points?"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from pydantic import BaseModel, Field

from tasks._images import (
    PICTURE_UPLOAD,
    FileKind,
    Fit,
    Frame,
    Picture,
    PictureBytes,
    decode_picture,
    encoded,
    fit_picture,
    thumbnail,
)
from tasks.contract import (
    Answer,
    Arrays,
    FileBytes,
    Form,
    InvalidOutput,
    Limits,
    Request,
    Samples,
    Task,
    TensorSpec,
    Upload,
)

_NEAR = 0.05
_OVERLAY_SIDES = (512, 1280)
"""Between these lies the longer side of an overlay, in pixels: on fewer, dots would hide what they mark."""
_DOUBTFUL, _SURE, _LINK = (240.0, 90.0, 20.0), (60.0, 230.0, 90.0), (255.0, 255.0, 255.0)

OverlayKind = Annotated[FileKind, Field(description="The kind of file that the overlay is.")]
Points = NDArray[np.floating]
Links = Sequence[tuple[int, int]]


class KeypointsRequest(Request):
    """A picture, and whether to draw the points on it."""

    image: PictureBytes
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
    upload: ClassVar[Upload | None] = PICTURE_UPLOAD
    forms: ClassVar[tuple[Form, ...]] = (
        Form("application/json"),
        Form("image/jpeg", {"overlay": True, "overlay_kind": "jpeg"}, file="overlay.file"),
        Form("image/png", {"overlay": True, "overlay_kind": "png"}, file="overlay.file"),
        Form("image/webp", {"overlay": True, "overlay_kind": "webp"}, file="overlay.file"),
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

    def decode(self, request: KeypointsRequest, limits: Limits) -> Picture:
        """The picture, 8-bit RGB and upright; large enough for an overlay, whether one is asked for or not."""
        return decode_picture(request.image, max_pixels=limits.pixels, enough=max(self.size, _OVERLAY_SIDES[0]))

    def preprocess(self, raw: Picture) -> Samples:
        """One sample: the picture fitted to the network's square. The context is its Frame, and the picture."""
        pixels, frame = fit_picture(raw, self.size, self.size, self.fit)
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

    def _overlay(self, picture: Picture, points: Points, confidence: Points, kind: FileKind) -> Overlay:
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
    return frame.to_picture(points.astype(np.float64)).clip(0, (frame.width, frame.height))


def _coloured(confidence: Points) -> Points:
    share = np.clip(confidence, 0, 1)[:, np.newaxis]
    return np.array(_DOUBTFUL) * (1 - share) + np.array(_SURE) * share


def with_points(pixels: NDArray[np.uint8], points: Points, links: Links, *, colours: Points) -> NDArray[np.uint8]:
    """The picture (height, width, 3) with a dot at each point (k, 2), in its colour (k, 3), and lines between some.

    Dots and lines have smooth edges, computed from distances: a point that moves by a thousandth of a pixel changes no
    level by more than one, so that overlays in golden answers survive rounding.
    """
    canvas = pixels.astype(np.float32)
    radius = max(canvas.shape[:2]) / 220 + 0.8
    for one, other in links:
        _blend(canvas, points[one], points[other], radius * 0.3, _LINK, 0.7)
    for point, colour in zip(points, colours, strict=True):
        _blend(canvas, point, point, radius, colour, 1.0)
    found: NDArray[np.uint8] = np.rint(canvas).astype(np.uint8)
    return found


def _blend(canvas: NDArray[np.float32], one: Points, other: Points, reach: float, colour: Any, opacity: float) -> None:
    """Colours what lies within `reach` pixels of the line from one point to the other; they may be the same."""
    height, width = canvas.shape[:2]
    left, top = (max(0, math.floor(low - reach - 1)) for low in np.minimum(one, other))
    right, bottom = (math.ceil(high + reach + 1) for high in np.maximum(one, other))
    right, bottom = max(left, min(width, right)), max(top, min(height, bottom))
    x, y = np.arange(left, right) + 0.5 - one[0], (np.arange(top, bottom) + 0.5 - one[1])[:, np.newaxis]
    along = np.asarray(other - one, np.float64)
    share = np.clip((x * along[0] + y * along[1]) / max(float(along @ along), 1e-9), 0, 1)
    distance = np.hypot(x - share * along[0], y - share * along[1])
    cover = (np.clip(reach + 0.5 - distance, 0, 1) * opacity)[..., np.newaxis]
    patch = canvas[top:bottom, left:right]
    patch += (np.asarray(colour, np.float32) - patch) * cover.astype(np.float32)


_SKIN, _SHADE, _HAIR = (224, 178, 150), (196, 142, 116), (70, 46, 34)
_FACE: tuple[tuple[str, tuple[float, ...], tuple[int, int, int]], ...] = (
    ("ellipse", (34, 150, 158, 300), (92, 104, 140)),  # Shoulders, hair, ears, neck and face, from back to front.
    ("ellipse", (48, 22, 144, 150), _HAIR),
    ("ellipse", (47, 84, 59, 112), _SHADE),
    ("ellipse", (133, 84, 145, 112), _SHADE),
    ("ellipse", (76, 120, 116, 176), _SHADE),
    ("ellipse", (54, 36, 138, 154), _SKIN),
    ("chord", (52, 26, 140, 104), _HAIR),
    ("ellipse", (66, 82, 88, 95), (246, 244, 240)),
    ("ellipse", (104, 82, 126, 95), (246, 244, 240)),
    ("ellipse", (72, 83, 83, 94), (66, 76, 60)),
    ("ellipse", (109, 83, 120, 94), (66, 76, 60)),
    ("ellipse", (75, 86, 80, 91), (16, 14, 14)),
    ("ellipse", (112, 86, 117, 91), (16, 14, 14)),
    ("polygon", (93, 86, 99, 86, 104, 112, 96, 116, 88, 112), (212, 162, 134)),
    ("ellipse", (88, 108, 94, 114), _SHADE),
    ("ellipse", (98, 108, 104, 114), _SHADE),
    ("ellipse", (79, 123, 113, 138), (176, 84, 84)),
    ("ellipse", (84, 127, 108, 131), (110, 40, 44)),
    ("arc", (63, 74, 91, 96), _HAIR),
    ("arc", (101, 74, 129, 96), _HAIR),
)
"""What a face is drawn of, in pixels of a picture of 192×224."""


def synthetic_face() -> bytes:
    """A JPEG, 192×224, of a drawn face: an example that belongs to nobody."""
    scale = 3
    image = Image.new("RGB", (192 * scale, 224 * scale), (118, 132, 138))
    draw = ImageDraw.Draw(image)
    for shape, numbers, colour in _FACE:
        at = [number * scale for number in numbers]
        if shape == "arc":
            draw.arc(at, 205, 335, fill=colour, width=4 * scale)
        elif shape == "chord":
            draw.chord(at, 195, 345, fill=colour)
        else:
            getattr(draw, shape)(at, fill=colour)
    image = image.filter(ImageFilter.GaussianBlur(scale)).resize((192, 224), Image.Resampling.BOX)
    x, y = np.meshgrid(np.linspace(-1, 1, 192), np.linspace(-1, 1, 224))
    light = (1.06 - 0.16 * x - 0.10 * y - 0.06 * (x**2 + y**2))[..., np.newaxis]
    return encoded((np.asarray(image) * light).clip(0, 255).astype(np.uint8), "jpeg", quality=88)
