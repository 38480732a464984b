"""Pictures: from a client's bytes to pixels for the graph, with the geometry that leads back.

Knows nothing of labels, masks or points.
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
"""How a picture becomes a square: stretched; whole, with a border; its middle."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
IMAGE_UPLOAD = Upload("image", ("image/jpeg", "image/png", "image/webp", "image/bmp"))
_DESCRIPTION = 0x010E  # The EXIF tag.
_START_OF_SCAN = b"\xff\xda"
_MAX_SCANS = 64
"""Of a progressive JPEG: encoders make about ten, and each costs a pass over all pixels, however few its bytes are."""
_MAX_SIDE = 65_535
"""Pixels, as in JPEG's own headers: a thread of millions would cost far more than a picture of as many pixels."""
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
"""A request field: the bytes of a picture's file; in JSON as base64, with or without a `data:` prefix."""


@dataclass(frozen=True)
class DecodedImage:
    """A decoded picture: 8-bit RGB, upright.

    `width` and `height` are those of the picture that was sent, in pixels. `image` may be smaller: a JPEG that is much
    larger than needed is decoded at a half, a quarter or an eighth.
    """

    image: Image.Image
    width: int
    height: int


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in the tensor made from it.

    A point (x, y) of the picture, in pixels from the upper left corner of its upper left pixel, is at
    (x · scale_x + offset_x, y · scale_y + offset_y) in the tensor.
    """

    width: int
    height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def to_network(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Points (…, 2) of the picture as points of the tensor."""
        return points * (self.scale_x, self.scale_y) + (self.offset_x, self.offset_y)

    def to_image(self, points: NDArray[np.floating]) -> NDArray[np.floating]:
        """Points (…, 2) of the tensor as points of the picture."""
        return (points - (self.offset_x, self.offset_y)) / (self.scale_x, self.scale_y)


def decode_image(content: bytes, *, max_pixels: int, enough: int | None = None) -> DecodedImage:
    """Reads a picture's file.

    Grey, palette, CMYK and 16-bit pictures become 8-bit RGB, transparency lies on white, the orientation in the EXIF
    data is applied, and of an animation the first frame is taken. `enough` is the side length in pixels that the
    caller needs: a larger JPEG may be decoded smaller, but not below it.

    Raises InvalidInput: empty, unreadable, or more than `max_pixels` (told from the header, before decoding).
    """
    if not content:
        raise InvalidInput("The picture is empty.", reason="empty")
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidInput("The picture has far too many pixels.", reason="too_large") from None
    except Exception:  # A decoder may raise anything at hostile bytes; all of it means the same.
        raise InvalidInput("This is not a picture in JPEG, PNG, WebP or BMP format.", reason="unreadable") from None
    width, height = image.size
    if width * height > max_pixels:
        message = f"The picture has {width}×{height} pixels; at most {max_pixels:,} are accepted."
        raise InvalidInput(message, reason="too_large")
    if max(width, height) > _MAX_SIDE:
        message = f"The picture is {width}×{height}; no side may have more than {_MAX_SIDE:,} pixels."
        raise InvalidInput(message, reason="too_large")
    if image.format == "JPEG" and content.count(_START_OF_SCAN) > _MAX_SCANS:
        message = f"The picture is a JPEG of more than {_MAX_SCANS} scans: it would take too long to decode."
        raise InvalidInput(message, reason="unreadable")
    try:
        if enough is not None and min(width, height) >= 2 * enough:
            image.draft("RGB", (enough, enough))
        image.load()
        upright = _to_rgb(_upright(image))
    except Exception as error:
        raise InvalidInput(f"The picture cannot be decoded: {error}.", reason="unreadable") from None
    if _lies_on_its_side(image):
        width, height = height, width
    return DecodedImage(upright, width, height)


def _lies_on_its_side(image: Image.Image) -> bool:
    """Whether turning it upright exchanges width and height: so say four of EXIF's orientations."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # As in `_upright`.
        return False


def thumbnail(picture: DecodedImage, longest: int) -> DecodedImage:
    """The same picture with an image no longer than `longest` pixels: what is kept of it while a request waits."""
    ratio = longest / max(picture.image.size)
    if ratio >= 1:
        return picture
    size = (max(1, round(picture.image.width * ratio)), max(1, round(picture.image.height * ratio)))
    return replace(picture, image=picture.image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) if image.getexif() else image
    except Exception:  # Whatever is wrong with what is said about a picture, the picture is there.
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would saturate.
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def fit_image(picture: DecodedImage, width: int, height: int, fit: Fit) -> tuple[NDArray[np.uint8], Frame]:
    """The picture's pixels, uint8 (height, width, 3), and where the picture lies in them."""
    if fit == "squash":
        scale_x, scale_y = width / picture.width, height / picture.height
        return _resize(picture.image, width, height), Frame(picture.width, picture.height, scale_x, scale_y, 0.0, 0.0)
    return _cropped(picture, width, height) if fit == "crop" else _padded(picture, width, height)


def _padded(picture: DecodedImage, width: int, height: int) -> tuple[NDArray[np.uint8], Frame]:
    ratio = min(width / picture.width, height / picture.height)
    inner_width, inner_height = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    pixels = np.full((height, width, 3), _BORDER, np.uint8)
    pixels[top : top + inner_height, left : left + inner_width] = _resize(picture.image, inner_width, inner_height)
    scale_x, scale_y = inner_width / picture.width, inner_height / picture.height
    return pixels, Frame(picture.width, picture.height, scale_x, scale_y, left, top)


def _cropped(picture: DecodedImage, width: int, height: int) -> tuple[NDArray[np.uint8], Frame]:
    image = picture.image
    ratio = min(image.width / width, image.height / height)
    # Rounding may make a product a hair larger than the side it was divided from.
    inner_width, inner_height = min(image.width, width * ratio), min(image.height, height * ratio)
    left, top = (image.width - inner_width) / 2, (image.height - inner_height) / 2
    pixels = _resize(image, width, height, box=(left, top, left + inner_width, top + inner_height))
    scale = max(width / picture.width, height / picture.height)
    offset_x, offset_y = (width - picture.width * scale) / 2, (height - picture.height * scale) / 2
    return pixels, Frame(picture.width, picture.height, scale, scale, offset_x, offset_y)


def _resize(
    image: Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> NDArray[np.uint8]:
    if image.size == (width, height) and box in (None, (0, 0, width, height)):
        return np.asarray(image)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0))


FileKind = Literal["png", "jpeg", "webp"]


def encoded(image: Image.Image | NDArray[np.uint8], kind: FileKind, *, quality: int = 90, note: str = "") -> bytes:
    """A picture's file; of pixels, uint8 (height, width) grey or (height, width, 3). `quality` is for JPEG and WebP.

    A `note` is kept in the file, as the description in its EXIF data.
    The settings are the fast ones: a few per cent more bytes, and many times as fast as the smallest file.
    """
    options: dict[str, Any] = {"png": {"compress_level": 1}, "jpeg": {}, "webp": {"method": 0}}[kind]
    if kind != "png":
        options["quality"] = quality
    if note:
        options["exif"] = Image.Exif()
        options["exif"][_DESCRIPTION] = note
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, kind.upper(), **options)
    return file.getvalue()


_FILE_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "UklGR")  # PNG, JPEG and WebP, in base64.
_FEW = 0.01


def is_image_file(text: str) -> bool:
    """Whether this is a picture's file in base64."""
    return text.startswith(_FILE_BEGINNINGS)


def same_image(expected: str, got: str) -> bool:
    """Whether two pictures' files in base64 show the same, but for rounding.

    Colours and greys: on the whole by less than 2 levels of 255. A palette's entries are classes, and no class is near
    another: at most one pixel of a hundred may have another one.
    """
    try:
        one, other = (Image.open(io.BytesIO(base64.b64decode(encoded))) for encoded in (expected, got))
        if (one.size, one.mode) != (other.size, other.mode):
            return False
        levels = np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16))
    except (OSError, ValueError):
        return False
    if one.mode == "P":
        return float((levels > 0).mean()) <= _FEW
    return float(levels.mean()) < 2 and int(levels.max()) < 32
