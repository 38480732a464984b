"""Pictures of any kind and size become the network's square, and what is found there leads back."""

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
def test_a_point_goes_to_the_network_and_comes_back_within_half_a_pixel(
    width: int, height: int, size: int, fit: str, x: float, y: float
) -> None:
    if width / height > 64 or height / width > 64:
        width = height
    pixels, frame = fit_image(blank(width, height), size, size, fit)  # type: ignore[arg-type]
    point = np.array([x * width, y * height])

    there = frame.to_network(point)
    back = frame.to_image(there)

    assert pixels.shape == (size, size, 3)
    assert np.abs(back - point).max() < 0.5
    if fit != "crop":
        assert (there >= -1e-6).all()
        assert (there <= size + 1e-6).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 400), st.integers(40, 400), fits, st.integers(0, 3), st.integers(0, 3))
def test_a_spot_of_the_picture_lies_where_the_frame_says(width: int, height: int, fit: str, i: int, j: int) -> None:
    image = Image.new("RGB", (width, height), "black")
    left, top = width * (2 + i) // 8, height * (2 + j) // 8
    spot = (left, top, left + width // 8, top + height // 8)
    image.paste("white", spot)
    pixels, frame = fit_image(DecodedImage(image, width, height), 64, 64, fit)  # type: ignore[arg-type]

    middle = frame.to_network(np.array([(spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2]))

    if ((middle > 1) & (middle < 63)).all():
        assert pixels[int(middle[1]), int(middle[0])].min() > 100


def test_a_large_jpeg_is_decoded_smaller_and_keeps_its_geometry() -> None:
    content = encode_image(red_image(4000, 3000), "JPEG")

    picture = decode_image(content, max_pixels=20_000_000, min_side=224)

    assert (picture.width, picture.height) == (4000, 3000)
    assert max(picture.image.size) < 4000
    assert min(picture.image.size) >= 224


def test_a_picture_on_its_side_is_set_upright() -> None:
    upright = decode_image(exif_rotated_jpeg(red_image()), max_pixels=10_000)

    assert (upright.width, upright.height) == (60, 40)
    assert upright.image.getpixel((5, 20))[0] < 120  # type: ignore[index]
    assert upright.image.getpixel((40, 20))[0] > 200  # type: ignore[index]


def test_sixteen_bits_become_eight_without_saturating() -> None:
    picture = decode_image(sixteen_bit_png(level=128 * 256), max_pixels=10_000)

    assert picture.image.getpixel((0, 0)) == (128, 128, 128)


def test_transparency_lies_on_white() -> None:
    picture = decode_image(encode_image(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), max_pixels=100)

    assert picture.image.getpixel((0, 0)) == (255, 255, 255)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    file = io.BytesIO()
    red_image().save(file, "PNG", save_all=True, append_images=[Image.new("RGB", (60, 40), "blue")])

    picture = decode_image(file.getvalue(), max_pixels=10_000)

    assert picture.image.getpixel((40, 20)) == (230, 20, 10)


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    header = encode_image(Image.new("1", (9000, 9000)))[:60]

    with pytest.raises(InvalidInput, match="9000×9000") as caught:
        decode_image(header, max_pixels=25_000_000)

    assert caught.value.reason == "too_large"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]), st.integers(0, 400))
def test_damaged_files_are_refused_and_nothing_else(junk: bytes, kind: str, at: int) -> None:
    whole = encode_image(red_image(), kind)
    damaged = whole[:at] + junk + whole[at + len(junk) :]

    with suppress(InvalidInput):
        assert decode_image(damaged, max_pixels=1_000_000).image.mode == "RGB"


@pytest.mark.parametrize(("width", "height"), [(1000, 999), (999, 1000), (2000, 1998), (1000, 1000)])
def test_a_picture_on_its_side_has_its_upright_sides_however_small_it_is_decoded(width: int, height: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode_image(Image.new("RGB", (width, height)), "JPEG", exif=exif)

    picture = decode_image(content, max_pixels=25_000_000, min_side=480)

    assert (picture.width, picture.height) == (height, width)


def test_a_thread_of_pixels_is_refused_before_it_is_decoded() -> None:
    content = encode_image(Image.new("1", (1_000_000, 1)))

    with pytest.raises(InvalidInput, match="no side may have more than 65,535 pixels") as error:
        decode_image(content, max_pixels=25_000_000)

    assert error.value.reason == "too_large"


def test_what_is_kept_of_a_large_picture_is_small_and_knows_how_large_it_was() -> None:
    kept = thumbnail(DecodedImage(Image.new("RGB", (5000, 2500)), 10_000, 5_000), 1280)

    assert kept.image.size == (1280, 640)
    assert (kept.width, kept.height) == (10_000, 5_000)
