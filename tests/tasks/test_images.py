"""Decoding of images, fitting to the network's input, and mapping back."""

import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks._images import DecodedImage, decode_image, fit_image, thumbnail
from tasks.contract import InvalidInput
from tests.images import encode_image, exif_rotated_jpeg, red_image, sixteen_bit_png

sides = st.integers(1, 3000)
fits = st.sampled_from(["squash", "pad", "crop"])


def blank(width: int, height: int) -> DecodedImage:
    return DecodedImage(Image.new("RGB", (width, height)), width, height)


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.integers(8, 256), fits, st.floats(0, 1), st.floats(0, 1))
def test_frame_maps_points_to_the_network_and_back_within_half_a_pixel(
    width: int, height: int, size: int, fit: str, x: float, y: float
) -> None:
    if width / height > 64 or height / width > 64:
        width = height
    pixels, frame = fit_image(blank(width, height), size, size, fit)  # type: ignore[arg-type]
    point = np.array([x * width, y * height])

    network_point = frame.to_network(point)
    restored = frame.to_image(network_point)

    assert pixels.shape == (size, size, 3)
    assert np.abs(restored - point).max() < 0.5
    if fit != "crop":
        assert (network_point >= -1e-6).all()
        assert (network_point <= size + 1e-6).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 400), st.integers(40, 400), fits, st.integers(0, 3), st.integers(0, 3))
def test_frame_locates_a_white_spot(width: int, height: int, fit: str, i: int, j: int) -> None:
    image = Image.new("RGB", (width, height), "black")
    left, top = width * (2 + i) // 8, height * (2 + j) // 8
    spot = (left, top, left + width // 8, top + height // 8)
    image.paste("white", spot)
    pixels, frame = fit_image(DecodedImage(image, width, height), 64, 64, fit)  # type: ignore[arg-type]

    centre = frame.to_network(np.array([(spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2]))

    if ((centre > 1) & (centre < 63)).all():
        assert pixels[int(centre[1]), int(centre[0])].min() > 100


def test_large_jpeg_is_decoded_smaller_and_keeps_its_size() -> None:
    content = encode_image(red_image(4000, 3000), "JPEG")

    decoded = decode_image(content, max_pixels=20_000_000, min_side=224)

    assert (decoded.width, decoded.height) == (4000, 3000)
    assert max(decoded.image.size) < 4000
    assert min(decoded.image.size) >= 224


def test_exif_orientation_is_applied() -> None:
    upright = decode_image(exif_rotated_jpeg(red_image()), max_pixels=10_000)

    assert (upright.width, upright.height) == (60, 40)
    assert upright.image.getpixel((5, 20))[0] < 120  # type: ignore[index]
    assert upright.image.getpixel((40, 20))[0] > 200  # type: ignore[index]


def test_sixteen_bits_become_eight_without_saturating() -> None:
    decoded = decode_image(sixteen_bit_png(level=128 * 256), max_pixels=10_000)

    assert decoded.image.getpixel((0, 0)) == (128, 128, 128)


def test_transparency_is_composited_on_white() -> None:
    decoded = decode_image(encode_image(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), max_pixels=100)

    assert decoded.image.getpixel((0, 0)) == (255, 255, 255)


def test_first_frame_of_an_animation_is_used() -> None:
    file = io.BytesIO()
    red_image().save(file, "PNG", save_all=True, append_images=[Image.new("RGB", (60, 40), "blue")])

    decoded = decode_image(file.getvalue(), max_pixels=10_000)

    assert decoded.image.getpixel((40, 20)) == (230, 20, 10)


def test_pixel_limit_is_checked_before_decoding() -> None:
    header = encode_image(Image.new("1", (9000, 9000)))[:60]

    with pytest.raises(InvalidInput, match="9000×9000") as caught:
        decode_image(header, max_pixels=25_000_000)

    assert caught.value.reason == "too_large"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]), st.integers(0, 400))
def test_damaged_files_raise_nothing_but_invalid_input(junk: bytes, kind: str, at: int) -> None:
    file = encode_image(red_image(), kind)
    damaged = file[:at] + junk + file[at + len(junk) :]

    with suppress(InvalidInput):
        assert decode_image(damaged, max_pixels=1_000_000).image.mode == "RGB"


@pytest.mark.parametrize(("width", "height"), [(1000, 999), (999, 1000), (2000, 1998), (1000, 1000)])
def test_rotated_jpeg_has_its_upright_size_when_decoded_smaller(width: int, height: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode_image(Image.new("RGB", (width, height)), "JPEG", exif=exif)

    decoded = decode_image(content, max_pixels=25_000_000, min_side=480)

    assert (decoded.width, decoded.height) == (height, width)


def test_overlong_side_is_rejected_before_decoding() -> None:
    content = encode_image(Image.new("1", (1_000_000, 1)))

    with pytest.raises(InvalidInput, match="no side may have more than 65,535 pixels") as error:
        decode_image(content, max_pixels=25_000_000)

    assert error.value.reason == "too_large"


def test_thumbnail_is_small_and_keeps_the_original_size() -> None:
    small = thumbnail(DecodedImage(Image.new("RGB", (5000, 2500)), 10_000, 5_000), 1280)

    assert small.image.size == (1280, 640)
    assert (small.width, small.height) == (10_000, 5_000)
