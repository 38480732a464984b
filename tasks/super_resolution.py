"""The same picture, larger and cleaner."""

import base64
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from tasks._images import IMAGE_UPLOAD, DecodedImage, FileKind, ImageBytes, decode_image, encoded
from tasks._tiles import Tiling
from tasks.comparison import near_pixels, pixels_of
from tasks.contract import (
    Answer,
    Arrays,
    FileBytes,
    InvalidInput,
    Limits,
    Representation,
    Request,
    Samples,
    Task,
    TensorSpec,
    Upload,
)

_MAX_FILE_SIDE: dict[FileKind, int] = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}
"""Pixels of a side that a file of this kind can have."""
_WORST = 25.5
"""Levels of 255: a mean difference of so many is another picture."""
_NOTE = "Made larger by a neural network: the detail in this picture is invented."


class SuperResolutionRequest(Request):
    """A picture, and what file the larger one shall be."""

    image: ImageBytes
    format: Annotated[FileKind, Field(description="Of the answer's file.")] = "png"
    quality: Annotated[int, Field(ge=1, le=100, description="Of a JPEG or WebP file.")] = 90


class SuperResolutionAnswer(Answer):
    """The larger picture. Its detail is invented: likely, and not seen."""

    width: Annotated[int, Field(description="Of the larger picture, in pixels.")]
    height: int
    scale: Annotated[int, Field(description="How many times as wide and as high it is as the picture that was sent.")]
    generated: Annotated[Literal[True], Field(description="Its detail is invented; it is no evidence.")] = True
    media_type: str
    image: FileBytes


@dataclass(frozen=True)
class SuperResolution(Task):
    """The same picture, `scale` times as wide and as high, without the traces of JPEG and of text drawn over it.

    The network sees tiles of one shape, whatever the size of the picture; they are blended where they overlap.

    Attributes:
        scale: how many times as wide and as high the answer is.
        tile: side length of what the network sees at once, in pixels of the picture that is sent.
        overlap: pixels that two neighbouring tiles share.
        margin: pixels at each side of a tile that are not used.
    """

    scale: int = 2
    tile: int = 128
    overlap: int = 24
    margin: int = 4

    request_type = SuperResolutionRequest
    answer_type = SuperResolutionAnswer
    upload: ClassVar[Upload | None] = IMAGE_UPLOAD
    decoding_releases_gil: ClassVar[bool] = True
    representations: ClassVar[tuple[Representation, ...]] = (
        Representation("application/json"),
        Representation("image/png", {"format": "png"}, file="image"),
        Representation("image/jpeg", {"format": "jpeg"}, file="image"),
        Representation("image/webp", {"format": "webp"}, file="image"),
    )

    @cached_property
    def tiling(self) -> Tiling:
        """How pictures are cut."""
        return Tiling(self.tile, self.overlap, self.margin)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Pixels as they are: the graph casts and normalises."""
        return (TensorSpec("image", "uint8", (self.tile, self.tile, 3), "pixel"),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Pixels as they are shown: the graph rounds and clamps."""
        side = self.scale * self.tile
        return (TensorSpec("restored", "uint8", (side, side, 3), "pixel"),)

    def decode(self, request: SuperResolutionRequest, limits: Limits) -> DecodedImage:
        """The picture, 8-bit RGB and upright. Raises InvalidInput, also where the answer would be too large."""
        most = limits.answer_pixels // self.scale**2
        try:
            picture = decode_image(request.image, max_pixels=min(limits.pixels, most))
        except InvalidInput as error:
            raise self._explained(error, most, limits) from None
        sides = picture.width, picture.height
        # A panorama of one pixel's height costs as many tiles as one that is as high as they are.
        seen = max(sides[0], self.tile) * max(sides[1], self.tile)
        if seen > max(most, self.tile**2):
            message = (
                f"The picture has {sides[0]}×{sides[1]} pixels and is seen in tiles of {self.tile}×{self.tile}, in all "
                f"{seen:,} pixels; at most {most:,} are accepted. Send it in pieces."
            )
            raise InvalidInput(message, reason="too_large")
        if self.scale * max(sides) > _MAX_FILE_SIDE[request.format]:
            message = (
                f"A {request.format} file has sides of at most {_MAX_FILE_SIDE[request.format]:,} pixels; ask for png."
            )
            raise InvalidInput(message, reason="too_large")
        return picture

    def _explained(self, error: InvalidInput, most: int, limits: Limits) -> InvalidInput:
        """The same error, and why there are fewer pixels than other tasks accept."""
        if error.reason != "too_large" or most >= limits.pixels:
            return error
        message = f"{error} The answer is {self.scale} times as wide and as high: send a smaller picture, or pieces."
        return InvalidInput(message, reason="too_large")

    def preprocess(self, raw: DecodedImage) -> Samples:
        """One sample a tile. The context is the picture's (width, height)."""
        pixels = np.asarray(raw.image)
        height, width = pixels.shape[:2]
        return Samples({"image": self.tiling.cut(pixels)}, (width, height))

    def restored(self, outputs: Arrays, samples: Samples) -> Any:
        """The whole larger picture, uint8 (scale·height, scale·width, 3)."""
        return self.tiling.joined(outputs["restored"], *samples.context, scale=self.scale)

    def postprocess(self, outputs: Arrays, samples: Samples, request: SuperResolutionRequest) -> SuperResolutionAnswer:
        """The tiles as one picture's file."""
        pixels = self.restored(outputs, samples)
        return SuperResolutionAnswer(
            width=pixels.shape[1],
            height=pixels.shape[0],
            scale=self.scale,
            media_type=f"image/{request.format}",
            image=encoded(pixels, request.format, quality=request.quality, note=_NOTE),
        )

    def agreement(self, ours: SuperResolutionAnswer, theirs: SuperResolutionAnswer) -> float:
        """1 for equal pictures, falling to 0 at a mean absolute difference of a tenth of all levels."""
        return near_pixels(pixels_of(ours.image), pixels_of(theirs.image), worst=_WORST)

    def example(self) -> dict[str, Any]:
        """A small synthetic picture with text over it; its answer is a PNG file."""
        return _body(_drawn(self.tile * 3 // 4, self.tile // 2))

    def examples(self) -> list[dict[str, Any]]:
        """A picture of one tile, one of several with a JPEG for an answer, and one with a WebP."""
        wide = _drawn(self.tile * 3 // 2, self.tile // 2)
        small = _drawn(self.tile // 2, self.tile // 3)
        return [
            self.example(),
            _body(wide, format="jpeg", quality=80),
            _body(small, format="webp", quality=60),
        ]


def _drawn(width: int, height: int) -> Image.Image:
    """Slopes of colour, shapes with edges, and a few words over them: belongs to nobody."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    slopes = np.stack([0.3 + 0.5 * x, 0.4 + 0.3 * np.sin(3 * y), 0.7 - 0.4 * x * y], axis=-1)
    image = Image.fromarray((slopes * 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.ellipse((width * 0.1, height * 0.2, width * 0.45, height * 0.9), fill=(200, 90, 40), outline=(60, 20, 10))
    pen.polygon([(width * 0.5, height * 0.9), (width * 0.7, height * 0.1), (width * 0.95, height * 0.8)], (40, 110, 80))
    pen.text((width * 0.2, height * 0.4), "sample 42", "white", ImageFont.load_default(max(8, height // 5)))
    return image


def _body(image: Image.Image, **fields: Any) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return {"image": base64.b64encode(file.getvalue()).decode("ascii"), **fields}
