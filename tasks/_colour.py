"""Colour profiles: conversion of the colours of an image to sRGB, which networks are trained on.

The profiles of phones (Display P3) and cameras (Adobe RGB) give the same numbers to more saturated colours.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from tasks._image_files.image_file import MAX_PROFILE_BYTES

_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""The modes of the images that a profile can describe, by the colour space in its header."""
_CONVERTIBLE = {"L": ("RGB", "L"), "LA": ("RGB", "L"), "CMYK": ("CMYK",)}
"""The modes that a profile may describe, by the image's mode, if not only RGB. Grey has equal parts of all colours."""
_UNBOUNDED_TAGS = (b"D2B0", b"D2B1", b"D2B2", b"D2B3")
"""Tables with any number of steps, each of which would be computed for every point of a grid."""
_MAX_TAGS = 100
_MAX_SRGB_DIFFERENCE = 2
"""Levels of 255. A profile that changes no colour by more is one of many that describe sRGB."""
_UNUSABLE = "The image's colour profile cannot be used; its colours were taken for sRGB."


def _unchanged(image: Image.Image) -> Image.Image:
    return image


@dataclass(frozen=True)
class Conversion:
    """How to convert an image of one mode to sRGB; `notices` say why its profile is ignored, if it is."""

    apply: Callable[[Image.Image], Image.Image] = _unchanged
    notices: tuple[str, ...] = ()


def srgb_conversion(profile: bytes | None, mode: str) -> Conversion:
    """Return the conversion of images without transparency, whose pixels have the colours of the profile.

    `mode` is the mode of the stored image. Without a profile, or with one of sRGB, nothing is converted. A profile that
    is damaged, too large or made for other images is ignored, with a notice.
    """
    if not profile:
        return Conversion()
    space = _SPACES.get(profile[16:20])
    if space not in _CONVERTIBLE.get(mode, ("RGB",)) or not _is_bounded(profile):
        return Conversion(notices=(_UNUSABLE,))
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), space, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return Conversion(notices=(_UNUSABLE,))

    def apply(image: Image.Image) -> Image.Image:
        return transform.apply(image if image.mode == space else image.convert(space))

    return Conversion() if _changes_little(apply, space) else Conversion(apply)


def _is_bounded(profile: bytes) -> bool:
    """Whether the profile can be read in bounded time: it is small, and has no tables of any number of steps."""
    if not 132 <= len(profile) <= MAX_PROFILE_BYTES:
        return False
    (count,) = struct.unpack_from(">I", profile, 128)
    table = profile[132 : 132 + 12 * min(count, _MAX_TAGS)]
    tags = [table[start : start + 4] for start in range(0, len(table), 12)]
    return count <= _MAX_TAGS and not set(tags) & set(_UNBOUNDED_TAGS)


def _changes_little(apply: Callable[[Image.Image], Image.Image], space: str) -> bool:
    """Whether a conversion leaves a grid of colours, given as sRGB, nearly as they are."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    colours = Image.fromarray(grid).convert(space)
    differences = np.asarray(apply(colours), np.int16) - np.asarray(colours.convert("RGB"), np.int16)
    return int(np.abs(differences).max()) <= _MAX_SRGB_DIFFERENCE
