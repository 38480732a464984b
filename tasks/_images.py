"""Images: from a client's bytes to the pixels that the graph reads, and the geometry to map results back.

This module does not depend on labels, masks or points.
"""

import base64
import binascii
import io
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from pydantic import BeforeValidator, WithJsonSchema

from tasks.contract import InvalidInput, Upload

Fit = Literal["squash", "pad", "crop"]
"""How an image becomes a square: stretched; scaled to fit, with a border; or cropped to its centre."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
IMAGE_UPLOAD = Upload("image", ("image/jpeg", "image/png", "image/webp", "image/bmp"))
_DESCRIPTION = 0x010E  # The EXIF tag.
_START_OF_SCAN = b"\xff\xda"
_MAX_SCANS = 64
"""Maximum scans of a progressive JPEG. Encoders write about ten; each costs a pass over all pixels, however short."""
_MAX_SIDE = 65_535
"""Maximum side in pixels, as in JPEG headers. A strip of millions costs far more than a square of equal area."""
_BORDER = (124, 116, 104)  # The mean colour of ImageNet: zero after normalising.


def _from_base64(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    encoded = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not valid base64") from None


ImageBytes = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "description": "A JPEG, PNG, WebP or BMP file."}),
]
"""A request field: the bytes of an image file; in JSON as base64, with or without a `data:` prefix."""


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image: 8-bit RGB, upright.

    `width` and `height` are those of the uploaded image, in pixels. `image` may be smaller: a JPEG that is much larger
    than needed is decoded at a half, a quarter or an eighth of its size.
    """

    image: Image.Image
    width: int
    height: int


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

    Greyscale, palette, CMYK and 16-bit images are converted to 8-bit RGB; transparency is composited on white; the EXIF
    orientation is applied; of an animation, the first frame is used. `min_side` is the side length in pixels that the
    caller needs: a larger JPEG may be decoded at a reduced size, but not below it.

    Raises InvalidInput if the file is empty or unreadable, or has more than `max_pixels` (known from the header, before
    decoding).
    """
    if not content:
        raise InvalidInput("The image is empty.", reason="empty")
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidInput("The image has far too many pixels.", reason="too_large") from None
    except Exception:  # Hostile bytes can make a decoder raise anything; the cause makes no difference.
        raise InvalidInput("This is not an image in JPEG, PNG, WebP or BMP format.", reason="unreadable") from None
    width, height = image.size
    if width * height > max_pixels:
        message = f"The image has {width}×{height} pixels; at most {max_pixels:,} are accepted."
        raise InvalidInput(message, reason="too_large")
    if max(width, height) > _MAX_SIDE:
        message = f"The image is {width}×{height}; no side may have more than {_MAX_SIDE:,} pixels."
        raise InvalidInput(message, reason="too_large")
    if image.format == "JPEG" and content.count(_START_OF_SCAN) > _MAX_SCANS:
        message = f"The image is a JPEG with more than {_MAX_SCANS} scans, which would take too long to decode."
        raise InvalidInput(message, reason="unreadable")
    try:
        if min_side is not None and min(width, height) >= 2 * min_side:
            image.draft("RGB", (min_side, min_side))
        image.load()
        upright = _to_rgb(_upright(image))
    except Exception as error:
        raise InvalidInput(f"The image cannot be decoded: {error}.", reason="unreadable") from None
    if _is_sideways(image):
        width, height = height, width
    return DecodedImage(upright, width, height)


def _is_sideways(image: Image.Image) -> bool:
    """Whether the EXIF orientation exchanges width and height, as four of the eight do."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # As in `_upright`.
        return False


def thumbnail(decoded: DecodedImage, max_side: int) -> DecodedImage:
    """Shrink the image to at most `max_side` pixels on its longer side, to save memory while a request waits."""
    ratio = max_side / max(decoded.image.size)
    if ratio >= 1:
        return decoded
    size = (max(1, round(decoded.image.width * ratio)), max(1, round(decoded.image.height * ratio)))
    return replace(decoded, image=decoded.image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) if image.getexif() else image
    except Exception:  # Broken metadata does not make the pixels unusable.
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow's conversion would saturate.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


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
    pixels = np.full((height, width, 3), _BORDER, np.uint8)
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
