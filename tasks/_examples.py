"""Synthetic images for examples and warm-up, so that no photograph or licence is needed."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tasks._images import encode_image

_SKIN, _SHADE, _HAIR = (224, 178, 150), (196, 142, 116), (70, 46, 34)
_FACE: tuple[tuple[str, tuple[float, ...], tuple[int, int, int]], ...] = (
    ("ellipse", (34, 150, 158, 300), (92, 104, 140)),  # Shoulders first; then hair, ears, neck and face on top.
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
"""The shapes of a face, from back to front, in pixels of an image of 192×224."""
_EXAMPLE_SIZE = (96, 72)


def synthetic_image(width: int = 192, height: int = 256) -> bytes:
    """Return a JPEG of smooth waves of colour."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = np.stack([np.sin(6 * x + 3 * y), np.cos(9 * y), np.sin(12 * x * y)], axis=-1)
    file = io.BytesIO()
    Image.fromarray(((waves * 0.5 + 0.5) * 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def synthetic_face() -> bytes:
    """Return a JPEG, 192×224, of a drawn face."""
    scale = 3
    image = Image.new("RGB", (192 * scale, 224 * scale), (118, 132, 138))
    draw = ImageDraw.Draw(image)
    for shape, coordinates, colour in _FACE:
        scaled = [coordinate * scale for coordinate in coordinates]
        if shape == "arc":
            draw.arc(scaled, 205, 335, fill=colour, width=4 * scale)
        elif shape == "chord":
            draw.chord(scaled, 195, 345, fill=colour)
        else:
            getattr(draw, shape)(scaled, fill=colour)
    image = image.filter(ImageFilter.GaussianBlur(scale)).resize((192, 224), Image.Resampling.BOX)
    x, y = np.meshgrid(np.linspace(-1, 1, 192), np.linspace(-1, 1, 224))
    light = (1.06 - 0.16 * x - 0.10 * y - 0.06 * (x**2 + y**2))[..., np.newaxis]
    return encode_image((np.asarray(image) * light).clip(0, 255).astype(np.uint8), "jpeg", quality=88)


def synthetic_scene(seed: int) -> bytes:
    """Return a PNG that resembles a street: sky, houses, a tree, a road between pavements, a car."""
    random = np.random.default_rng(seed)
    width, height = _EXAMPLE_SIZE
    horizon = int(height * random.uniform(0.48, 0.56))
    image = Image.new("RGB", _EXAMPLE_SIZE, (208, 222, 238))
    draw = ImageDraw.Draw(image)
    middle = int(random.integers(width * 2 // 5, width * 3 // 5))
    _draw_houses(draw, random, horizon, right=middle - 4)
    x, radius = int(random.integers(middle + 16, width - 8)), int(random.integers(13, 18))
    draw.line((x, horizon, x, horizon + 4), fill=(50, 40, 35), width=3)
    draw.ellipse((x - radius, horizon - 2 * radius, x + radius, horizon + 1), fill=(66, 84, 50))
    draw.rectangle((0, horizon + 2, width, height), fill=(142, 136, 134))
    draw.polygon(
        ((middle - 3, horizon + 2), (middle + 5, horizon + 2), (width + 9, height), (-9, height)), (92, 92, 98)
    )
    _draw_car(draw, middle, horizon + int(random.integers(2, 8)))
    # In a photo only the sky has an even colour; foliage is the most uneven.
    pixels = np.asarray(image, float)
    grain = np.where(pixels[..., 2] > 230, 1.0, 7.0)
    grain[(pixels[..., 1] > pixels[..., 0] + 12) & (pixels[..., 2] < 90)] = 26.0
    pixels = pixels + grain[..., None] * random.normal(size=(height, width, 1))
    return encode_image(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), "png")


def _draw_houses(draw: ImageDraw.ImageDraw, random: np.random.Generator, horizon: int, *, right: int) -> None:
    """Draw a row of houses with windows, from the left edge to `right`."""
    left = -3
    while left < right:
        end, top = left + int(random.integers(14, 22)), horizon - int(random.integers(18, 30))
        level = int(random.integers(105, 150))
        draw.rectangle((left, top, min(end, right), horizon + 2), fill=(level, level - 18, level - 34))
        for x in range(left + 2, min(end, right) - 3, 5):
            for y in range(top + 3, horizon - 4, 7):
                draw.rectangle((x, y, x + 2, y + 3), fill=(52, 54, 60))
        left = end + 1


def _draw_car(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """Draw a car seen from behind, with its wheels on the road."""
    draw.rectangle((x - 4, y, x + 12, y + 5), fill=(40, 43, 54))
    draw.rectangle((x - 2, y + 1, x + 10, y + 4), fill=(28, 31, 36))
    draw.rectangle((x - 7, y + 5, x + 15, y + 13), fill=(58, 62, 74))
    draw.rectangle((x - 6, y + 7, x - 4, y + 9), fill=(230, 90, 60))
    draw.rectangle((x + 12, y + 7, x + 14, y + 9), fill=(230, 90, 60))
    draw.rectangle((x - 6, y + 13, x - 3, y + 15), fill=(20, 20, 22))
    draw.rectangle((x + 11, y + 13, x + 14, y + 15), fill=(20, 20, 22))
