"""Super-resolution: an image enlarged and cleaned."""

import base64
import io
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pydantic import Field

from tasks._images import (
    IMAGE_UPLOAD,
    DecodedImage,
    FileKind,
    ImageBytes,
    composite_on_white,
    decode_transparent_image,
    encode_image,
)
from tasks._tiles import Tiling
from tasks.comparison import pixel_similarity, read_pixels
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
"""Maximum side length of each file format, in pixels."""
_MAX_DIFFERENCE = 25.5
"""Levels of 255. Images with this mean difference or more do not agree at all."""
_MAX_COLOUR_DISTANCE = 8
"""Pixels. The colours of transparent pixels up to this far from visible ones reach the network's view of those."""
_FLATTENED = "A JPEG has no transparency; the image was put on white. Request png or webp to keep it."
_NOTE = "Made larger by a neural network: the detail in this picture is invented."


class SuperResolutionRequest(Request):
    """An image, and the file format of the enlarged one."""

    image: ImageBytes
    format: Annotated[FileKind, Field(description="The file format of the answer.")] = "png"
    quality: Annotated[int, Field(ge=1, le=100, description="The quality of a JPEG or WebP file.")] = 90


class SuperResolutionAnswer(Answer):
    """The enlarged image. Its detail is invented: plausible, but not measured."""

    width: Annotated[int, Field(description="Width of the enlarged image, in pixels.")]
    height: int
    scale: Annotated[int, Field(description="The factor by which width and height were enlarged.")]
    generated: Annotated[Literal[True], Field(description="The detail is invented; it is not evidence.")] = True
    media_type: str
    image: FileBytes
    notices: Annotated[
        list[str] | None,
        Field(description="What was done with the image's transparency or colour profile, if anything."),
    ] = None


@dataclass(frozen=True)
class TiledImage:
    """What is needed to put the tiles together: the size of the image, its transparency, and messages to the client."""

    width: int
    height: int
    alpha: Image.Image | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class SuperResolution(Task):
    """An image enlarged `scale` times in width and height, without JPEG artefacts and text drawn over it.

    The network sees tiles of one shape, whatever the size of the image; they are blended where they overlap.

    Attributes:
        scale: the factor by which width and height are enlarged.
        tile: side length of the network's input, in pixels of the uploaded image.
        overlap: pixels that two neighbouring tiles share.
        margin: pixels at each side of a tile that are discarded.
    """

    scale: int = 2
    tile: int = 128
    overlap: int = 24
    margin: int = 4

    request_type = SuperResolutionRequest
    answer_type = SuperResolutionAnswer
    upload: ClassVar[Upload | None] = IMAGE_UPLOAD
    decodes_files: ClassVar[bool] = True
    representations: ClassVar[tuple[Representation, ...]] = (
        Representation("application/json"),
        Representation("image/png", {"format": "png"}, file="image"),
        Representation("image/jpeg", {"format": "jpeg"}, file="image"),
        Representation("image/webp", {"format": "webp"}, file="image"),
    )

    @cached_property
    def tiling(self) -> Tiling:
        """How images are cut into tiles."""
        return Tiling(self.tile, self.overlap, self.margin)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Unscaled pixels; the graph casts and normalises."""
        return (TensorSpec("image", "uint8", (self.tile, self.tile, 3), "pixel"),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Pixels ready for display; the graph rounds and clamps."""
        side = self.scale * self.tile
        return (TensorSpec("restored", "uint8", (side, side, 3), "pixel"),)

    def decode(self, request: SuperResolutionRequest, limits: Limits) -> DecodedImage:
        """Decode the image to upright 8-bit RGB and transparency.

        Raises InvalidInput, also if the answer would be too large.
        """
        max_pixels = limits.answer_pixels // self.scale**2
        try:
            decoded = decode_transparent_image(request.image, max_pixels=min(limits.pixels, max_pixels))
        except InvalidInput as error:
            raise self._explain_limit(error, max_pixels, limits) from None
        width, height = decoded.width, decoded.height
        # An image one pixel high costs as many tiles as one that is as high as a tile.
        tiled_pixels = max(width, self.tile) * max(height, self.tile)
        if tiled_pixels > max(max_pixels, self.tile**2):
            message = (
                f"The image has {width}×{height} pixels, which in tiles of {self.tile}×{self.tile} makes "
                f"{tiled_pixels:,} pixels; at most {max_pixels:,} are accepted. Send it in pieces."
            )
            raise InvalidInput(message, reason="too_large")
        max_side = _MAX_FILE_SIDE[request.format]
        if self.scale * max(width, height) > max_side:
            message = f"A side of a {request.format} file has at most {max_side:,} pixels; request png instead."
            raise InvalidInput(message, reason="too_large")
        return replace(decoded, image=_extend_colours(decoded.image, decoded.alpha)) if decoded.alpha else decoded

    def _explain_limit(self, error: InvalidInput, max_pixels: int, limits: Limits) -> InvalidInput:
        """Add to an error why this task accepts fewer pixels than others."""
        if error.reason != "too_large" or max_pixels >= limits.pixels:
            return error
        message = f"{error} The answer is {self.scale} times as wide and as high: send a smaller image, or pieces."
        return InvalidInput(message, reason="too_large")

    def preprocess(self, raw: DecodedImage) -> Samples:
        """Cut the image into tiles, one sample each. The context is a TiledImage."""
        pixels = np.asarray(raw.image)
        context = TiledImage(raw.image.width, raw.image.height, raw.alpha, raw.notices)
        return Samples({"image": self.tiling.cut(pixels)}, context)

    def restore(self, outputs: Arrays, samples: Samples) -> Any:
        """Blend the tiles into the enlarged image without its transparency, uint8 (scale·height, scale·width, 3)."""
        context: TiledImage = samples.context
        return self.tiling.blend(outputs["restored"], context.width, context.height, scale=self.scale)

    def postprocess(self, outputs: Arrays, samples: Samples, request: SuperResolutionRequest) -> SuperResolutionAnswer:
        """Blend the tiles and encode the image as a file, with its transparency if the format has any."""
        context: TiledImage = samples.context
        image, notices = Image.fromarray(self.restore(outputs, samples)), list(context.notices)
        if context.alpha:
            alpha = context.alpha.resize(image.size, Image.Resampling.BICUBIC)
            if request.format == "jpeg":
                composite_on_white(image, alpha)
                notices.append(_FLATTENED)
            else:
                image.putalpha(alpha)
        return SuperResolutionAnswer(
            width=image.width,
            height=image.height,
            scale=self.scale,
            media_type=f"image/{request.format}",
            image=encode_image(image, request.format, quality=request.quality, note=_NOTE),
            notices=notices or None,
        )

    def agreement(self, ours: SuperResolutionAnswer, theirs: SuperResolutionAnswer) -> float:
        """Return 1 for equal images, falling to 0 at a mean absolute difference of a tenth of all levels."""
        return pixel_similarity(read_pixels(ours.image), read_pixels(theirs.image), max_difference=_MAX_DIFFERENCE)

    def example(self) -> dict[str, Any]:
        """Return a request with a small synthetic image with text over it, answered as PNG."""
        return _request_body(_draw_example(self.tile * 3 // 4, self.tile // 2))

    def examples(self) -> list[dict[str, Any]]:
        """Return requests with one tile (PNG), with several tiles (JPEG), and with a small image (WebP)."""
        wide = _draw_example(self.tile * 3 // 2, self.tile // 2)
        small = _draw_example(self.tile // 2, self.tile // 3)
        return [
            self.example(),
            _request_body(wide, format="jpeg", quality=80),
            _request_body(small, format="webp", quality=60),
        ]


def _extend_colours(image: Image.Image, alpha: Image.Image) -> Image.Image:
    """Continue the colours of visible pixels into invisible ones, whose own colours are arbitrary, often black.

    The network mixes neighbouring pixels, so those colours would become visible as a fringe.
    """
    blurred = Image.merge("RGBA", (*image.split(), alpha)).convert("RGBa")
    blurred = blurred.filter(ImageFilter.BoxBlur(_MAX_COLOUR_DISTANCE))
    extended = blurred.convert("RGBA").convert("RGB")
    extended.paste(image, mask=alpha.point(lambda level: 255 if level else 0))
    return extended


def _draw_example(width: int, height: int) -> Image.Image:
    """Draw colour gradients, shapes with edges, and text over them."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    gradients = np.stack([0.3 + 0.5 * x, 0.4 + 0.3 * np.sin(3 * y), 0.7 - 0.4 * x * y], axis=-1)
    image = Image.fromarray((gradients * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.1, height * 0.2, width * 0.45, height * 0.9), fill=(200, 90, 40), outline=(60, 20, 10))
    triangle = [(width * 0.5, height * 0.9), (width * 0.7, height * 0.1), (width * 0.95, height * 0.8)]
    draw.polygon(triangle, (40, 110, 80))
    draw.text((width * 0.2, height * 0.4), "sample 42", "white", ImageFont.load_default(max(8, height // 5)))
    return image


def _request_body(image: Image.Image, **fields: Any) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return {"image": base64.b64encode(file.getvalue()).decode("ascii"), **fields}
