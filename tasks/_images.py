"""Images: from a client's bytes to the pixels that the graph reads, and the geometry to map results back.

This module does not depend on labels, masks or points.
"""

import base64
import binascii
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops
from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from tasks._colour import srgb_conversion
from tasks._image_files.heif import decode_heif
from tasks._image_files.image_file import ImageFile
from tasks._image_files.read import accepted_formats, accepted_media_types, read_image_file
from tasks.contract import InvalidInput, Upload
from tasks.sending_mistakes import explain_reference

Fit = Literal["squash", "pad", "crop"]
"""How an image becomes a square: stretched; scaled to fit, with a border; or cropped to its centre."""

IMAGE_UPLOAD = Upload("image", accepted_media_types(), has_signature=True)
_NO_BASE64 = (
    "not valid base64; send the file itself (with curl: -F image=@FILE), or its content encoded in base64 as JSON"
)
_DESCRIPTION = 0x010E  # The EXIF tag.
_BAND_PIXELS = 1_000_000
"""Pixels that are converted at a time, because each step of the conversion holds another copy of them."""
_MAX_BYTES_PER_PIXEL = 16
"""The most memory that a decoder takes for each pixel, in copies of different formats."""
_MIN_REDUCED_SIDE = 1280
"""Pixels. Images are reduced to no less than this, because overlays show them in this size."""
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to display an image, by its EXIF orientation."""
_SIDEWAYS = (5, 6, 7, 8)
BORDER = (124, 116, 104)
"""Colour around a padded image: the mean colour of ImageNet, which is zero after normalising."""


def _from_base64(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    encoded = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        mistake = explain_reference(value, IMAGE_UPLOAD.field) or _NO_BASE64
        raise PydanticCustomError("value_error", "{mistake}", {"mistake": mistake}) from None


ImageBytes = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    WithJsonSchema(
        {"type": "string", "contentEncoding": "base64", "description": f"An image file: {accepted_formats()}."}
    ),
]
"""A request field: the bytes of an image file; in JSON as base64, with or without a `data:` prefix."""


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image: 8-bit sRGB, upright.

    `image` may be smaller than the uploaded image if the file is much larger
    than needed: a JPEG is then decoded at a half, a quarter or an eighth of its size.

    Attributes:
        image: the colours.
        width: width of the uploaded image, in pixels.
        height: height of the uploaded image, in pixels.
        alpha: the transparency in mode L, as large as `image`: 0 is transparent, 255 opaque; None if it was composited
            on white, or there was none.
        notices: messages to the client about what could not be read.
    """

    image: Image.Image
    width: int
    height: int
    alpha: Image.Image | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frame:
    """The position of an image in the tensor made from it.

    A point (x, y) of the image, in pixels from the upper left corner of its upper left pixel, is at
    (x · scale_x + offset_x, y · scale_y + offset_y) in the tensor. `width` and `height` are those of the image.
    """

    width: int
    height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def to_network(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map points (…, 2) of the image to points of the tensor."""
        return points * (self.scale_x, self.scale_y) + (self.offset_x, self.offset_y)

    def to_image(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map points (…, 2) of the tensor to points of the image."""
        return (points - (self.offset_x, self.offset_y)) / (self.scale_x, self.scale_y)


def decode_image(content: bytes, *, max_pixels: int, min_side: int | None = None) -> DecodedImage:
    """Decode an image file.

    Greyscale, palette, CMYK and 16-bit images are converted to 8-bit RGB, colours of an embedded profile to sRGB;
    transparency is composited on white; the EXIF orientation is applied; of an animation, the first frame is used.
    `min_side` is the side length in pixels that the caller needs: a larger image may be returned at a reduced size, but
    not below it.

    Raises InvalidInput if the file is empty or unreadable, or has more than `max_pixels` (known from the header, before
    decoding).
    """
    decoded = decode_transparent_image(content, max_pixels=max_pixels, min_side=min_side)
    if decoded.alpha is None:
        return decoded
    composite_on_white(decoded.image, decoded.alpha)
    return replace(decoded, alpha=None)


def composite_on_white(image: Image.Image, alpha: Image.Image) -> None:
    """Put an image on white, in place, since a copy of a large one would take much memory."""
    image.paste("white", mask=ImageChops.invert(alpha))


def decode_transparent_image(content: bytes, *, max_pixels: int, min_side: int | None = None) -> DecodedImage:
    """Decode an image file as `decode_image` does, but keep its transparency, unless it is opaque everywhere."""
    file = read_image_file(content, max_pixels=max_pixels)
    try:
        stored = _load(file, min_side)
        conversion = srgb_conversion(file.profile, stored.mode)
        colours, alpha = _convert(stored, conversion.apply, _reduction(stored.size, min_side))
        del stored
        colours = _upright(colours, file.orientation)
        alpha = _upright(alpha, file.orientation) if alpha and alpha.getextrema() != (255, 255) else None
    except MemoryError:
        raise  # It says nothing about the file: there may be more memory at another time.
    except Exception as error:  # Hostile bytes can make a decoder raise anything; the cause makes no difference.
        if _may_lack_memory(file):
            raise MemoryError(f"decoding an image of {file.width} × {file.height} pixels") from error
        raise InvalidInput(f"The image cannot be decoded: {error}.", reason="unreadable") from None
    width, height = (file.height, file.width) if file.orientation in _SIDEWAYS else (file.width, file.height)
    return DecodedImage(colours, width, height, alpha, conversion.notices)


def _may_lack_memory(file: ImageFile) -> bool:
    """Return whether decoding may have failed because of the limit on memory: most decoders do not tell."""
    try:
        import resource  # Unix has it.

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return False
    if limit < 0:
        return False
    return used + _MAX_BYTES_PER_PIXEL * file.width * file.height > limit


def _load(file: ImageFile, min_side: int | None) -> Image.Image:
    if file.kind == "HEIF":
        return decode_heif(file.content)
    image = Image.open(io.BytesIO(file.content), formats=(file.kind,))
    if min_side is not None and min(image.size) >= 2 * min_side:
        image.draft("RGB", (min_side, min_side))
    image.load()
    return image


def _reduction(size: tuple[int, int], min_side: int | None) -> int:
    """Return the factor by which to reduce an image before it is converted, so that its sides remain large enough."""
    return max(1, min(size) // max(2 * min_side, _MIN_REDUCED_SIDE)) if min_side else 1


def _convert(
    image: Image.Image, to_srgb: Callable[[Image.Image], Image.Image], factor: int
) -> tuple[Image.Image, Image.Image | None]:
    """Return colours and transparency of an image, reduced by a factor, row by row to save memory."""
    has_alpha = image.has_transparency_data and not image.mode.startswith("I")  # Of 16 bits, Pillow reads no alpha.
    if image.mode == "RGB" and factor == 1 and not has_alpha:
        return to_srgb(image), None
    size = (math.ceil(image.width / factor), math.ceil(image.height / factor))
    colours = Image.new("RGB", size)
    alpha = Image.new("L", size) if has_alpha else None
    rows = factor * max(1, _BAND_PIXELS // (image.width * factor))
    for top in range(0, image.height, rows):
        band = _to_eight_bits(image.crop((0, top, image.width, min(image.height, top + rows)))).reduce(factor)
        if alpha:
            alpha.paste(band.getchannel("A"), (0, top // factor))
        colours.paste(to_srgb(_without_alpha(band)).convert("RGB"), (0, top // factor))
    return colours, alpha


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Return the image in a mode whose pixels can be averaged: L, RGB, CMYK, LA or RGBA."""
    if image.mode.startswith("I"):  # 16 bits: Pillow's conversion would saturate.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        return image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _without_alpha(image: Image.Image) -> Image.Image:
    return image.convert(image.mode[:-1]) if image.mode in ("LA", "RGBA") else image


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _TRANSPOSITIONS.get(orientation)
    return image if method is None else image.transpose(method)


def thumbnail(decoded: DecodedImage, max_side: int) -> DecodedImage:
    """Shrink the image to at most `max_side` pixels on its longer side, to save memory while a request waits."""
    ratio = max_side / max(decoded.image.size)
    if ratio >= 1:
        return decoded
    size = (max(1, round(decoded.image.width * ratio)), max(1, round(decoded.image.height * ratio)))
    return replace(decoded, image=decoded.image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0))


def fit_image(decoded: DecodedImage, width: int, height: int, fit: Fit) -> tuple[NDArray[np.uint8], Frame]:
    """Return the image as pixels, uint8 (height, width, 3), and its position in them."""
    if fit == "squash":
        scale_x, scale_y = width / decoded.width, height / decoded.height
        return _resize(decoded.image, width, height), Frame(decoded.width, decoded.height, scale_x, scale_y, 0.0, 0.0)
    return _crop(decoded, width, height) if fit == "crop" else _pad(decoded, width, height)


def _pad(decoded: DecodedImage, width: int, height: int) -> tuple[NDArray[np.uint8], Frame]:
    ratio = min(width / decoded.width, height / decoded.height)
    inner_width, inner_height = max(1, round(decoded.width * ratio)), max(1, round(decoded.height * ratio))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    pixels = np.full((height, width, 3), BORDER, np.uint8)
    pixels[top : top + inner_height, left : left + inner_width] = _resize(decoded.image, inner_width, inner_height)
    scale_x, scale_y = inner_width / decoded.width, inner_height / decoded.height
    return pixels, Frame(decoded.width, decoded.height, scale_x, scale_y, left, top)


def _crop(decoded: DecodedImage, width: int, height: int) -> tuple[NDArray[np.uint8], Frame]:
    image = decoded.image
    ratio = min(image.width / width, image.height / height)
    # Rounding may make a product slightly larger than the side that it was divided from.
    inner_width, inner_height = min(image.width, width * ratio), min(image.height, height * ratio)
    left, top = (image.width - inner_width) / 2, (image.height - inner_height) / 2
    pixels = _resize(image, width, height, box=(left, top, left + inner_width, top + inner_height))
    scale = max(width / decoded.width, height / decoded.height)
    offset_x, offset_y = (width - decoded.width * scale) / 2, (height - decoded.height * scale) / 2
    return pixels, Frame(decoded.width, decoded.height, scale, scale, offset_x, offset_y)


def _resize(
    image: Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> NDArray[np.uint8]:
    if image.size == (width, height) and box in (None, (0, 0, width, height)):
        return np.asarray(image)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))


FileKind = Literal["png", "jpeg", "webp"]


def encode_image(image: Image.Image | NDArray[np.uint8], kind: FileKind, *, quality: int = 90, note: str = "") -> bytes:
    """Encode an image, or pixels: uint8 (height, width) for greyscale or (height, width, 3) for RGB.

    `quality` applies to JPEG and WebP. `note` is stored as the description in the EXIF data. The encoder settings are
    fast: a few per cent more bytes than the smallest file, in a fraction of the time.
    """
    options: dict[str, Any] = {"png": {"compress_level": 1}, "jpeg": {}, "webp": {"method": 0}}[kind]
    if kind != "png":
        options["quality"] = quality
    if note:
        options["exif"] = Image.Exif()
        options["exif"][_DESCRIPTION] = note
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind.upper(), **options)
    return file.getvalue()


_BASE64_SIGNATURES = ("iVBORw0KGgo", "/9j/", "UklGR")  # PNG, JPEG and WebP.
_MAX_CHANGED_CLASSES = 0.01


def is_image_file(text: str) -> bool:
    """Whether the text is an image file in base64."""
    return text.startswith(_BASE64_SIGNATURES)


def same_image(expected: str, actual: str) -> bool:
    """Whether two base64 image files show the same image, apart from rounding.

    Colour and greyscale images: the mean difference is below 2 levels of 255, and none reaches 32. Palette indices are
    classes, which are never close to each other: up to 1 % of the pixels may differ.
    """
    try:
        left, right = (Image.open(io.BytesIO(base64.b64decode(content))) for content in (expected, actual))
        if (left.size, left.mode) != (right.size, right.mode):
            return False
        differences = np.abs(np.asarray(left, np.int16) - np.asarray(right, np.int16))
    except (OSError, ValueError):
        return False
    if left.mode == "P":
        return float((differences > 0).mean()) <= _MAX_CHANGED_CLASSES
    return float(differences.mean()) < 2 and int(differences.max()) < 32
