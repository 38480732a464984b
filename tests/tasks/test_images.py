"""Decoding of images, fitting to the network's input, and mapping back."""

import io
import random
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from tasks._image_files.heif import can_read_heif
from tasks._image_files.read import format_of, read_image_file
from tasks._images import IMAGE_UPLOAD, DecodedImage, decode_image, fit_image, thumbnail
from tasks.contract import InvalidInput, Limits
from tests import hostile_images as hostile
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


@pytest.mark.parametrize("size", [(2000, 1500), (1500, 2000), (4000, 3000)])
def test_jpeg_that_is_decoded_smaller_shows_the_network_the_same_picture(size: tuple[int, int]) -> None:
    blobs = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    content = encode_image(Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC), "JPEG", quality=95)

    scaled, whole = (
        fit_image(decode_image(content, max_pixels=12_000_000, min_side=side), 224, 224, "squash")[0].astype(int)
        for side in (224, None)
    )

    assert np.abs(scaled - whole).mean() < 1
    assert np.abs(scaled - whole).max() < 16


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


@pytest.mark.parametrize(("mode", "colour"), [("1", 0), ("L", 0), ("P", 0), ("RGB", (0, 0, 0))])
def test_transparent_colour_becomes_white_in_every_mode(mode: str, colour: int | tuple[int, int, int]) -> None:
    content = encode_image(Image.new(mode, (8, 8), colour), transparency=colour)

    assert decode_image(content, max_pixels=100).image.getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_image_with_a_transparent_level_is_read() -> None:
    content = sixteen_bit_png(level=128 * 256)
    transparent = hostile.png_chunk(b"tRNS", b"\0\0")
    data = content.index(b"IDAT") - 4

    decoded = decode_image(content[:data] + transparent + content[data:], max_pixels=10_000)

    assert decoded.image.getpixel((0, 0)) == (128, 128, 128)


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
@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]), st.integers(0, 400))
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


EXIF_ORIENTATION = 0x0112


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    content = encode_image(red_image(), kind, exif=exif, **options)

    decoded = decode_image(content, max_pixels=10_000)

    with Image.open(io.BytesIO(content)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(np.asarray(decoded.image), np.asarray(expected))
    assert (decoded.width, decoded.height) == expected.size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_first_page_of_a_tiff_is_read(mode: str, compression: str) -> None:
    image = Image.fromarray(np.full((40, 60), 200 << 8, np.uint16)) if mode == "I;16" else red_image().convert(mode)
    page = encode_image(image, "TIFF", compression=compression, save_all=True, append_images=[red_image(5, 5)])

    decoded = decode_image(page, max_pixels=10_000)

    expected = (200, 200, 200) if mode == "I;16" else image.convert("RGB").getpixel((40, 20))
    assert decoded.image.size == (60, 40)
    assert decoded.image.getpixel((40, 20)) == expected


def test_first_frame_of_a_gif_is_used_and_its_transparency_becomes_white() -> None:
    first = Image.new("RGBA", (60, 40), (0, 0, 255, 255))
    first.paste((0, 0, 0, 0), (0, 0, 30, 40))
    content = encode_image(first, "GIF", save_all=True, append_images=[red_image()], comment="a comment " * 100)

    decoded = decode_image(content, max_pixels=10_000)

    assert decoded.image.getpixel((45, 20)) == (0, 0, 255)
    assert decoded.image.getpixel((10, 20)) == (255, 255, 255)


def test_only_the_first_image_of_a_multi_picture_file_is_decoded() -> None:
    content = encode_image(red_image(), "MPO", save_all=True, append_images=[Image.new("RGB", (60, 40), "blue")])

    assert decode_image(content, max_pixels=10_000).image.getpixel((40, 20))[0] > 200  # type: ignore[index]
    assert len(read_image_file(content, max_pixels=10_000).content) < len(content) / 2


def test_film_at_the_end_of_a_photo_is_ignored() -> None:
    content = encode_image(red_image(), "JPEG") + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 1000

    assert decode_image(content, max_pixels=10_000).width == 60


def test_scans_in_an_embedded_preview_do_not_count() -> None:
    preview = encode_image(red_image(), "JPEG") * 70
    content = hostile.jpeg_with_segments(1, b"Exif\0\0" + preview[:60_000])

    assert decode_image(content, max_pixels=10_000).width == 60


def damaged(content: bytes, seed: int) -> bytes:
    """The file with a tenth of a per cent of its bytes changed."""
    chance, changed = random.Random(seed), bytearray(content)
    for _ in range(1 + len(content) // 1000):
        changed[chance.randrange(len(content))] = chance.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize(
    ("compression", "mode", "variant"),
    [
        ("jpeg", "RGB", "compressed with JPEG"),
        ("packbits", "RGB", "compressed with PackBits"),
        ("group4", "1", "compressed for fax, group 4"),
        ("raw", "F", "floating-point numbers"),
        ("raw", "LAB", "Lab colours"),
    ],
)
def test_a_tiff_that_is_not_accepted_is_refused_in_words(compression: str, mode: str, variant: str) -> None:
    image = Image.new(mode, (8, 8))

    with pytest.raises(InvalidInput, match=rf"a variant that is not accepted \({variant}\); save it as PNG or JPEG"):
        decode_image(encode_image(image, "TIFF", compression=compression), max_pixels=100)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_randomly_changed_files_raise_nothing_but_invalid_input(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    content = encode_image(noise, kind)

    for seed in range(100):
        with suppress(InvalidInput):
            assert decode_image(damaged(content, seed), max_pixels=1_000_000, min_side=16).image.mode == "RGB"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (hostile.bmp_of_run_lengths, "BMP with compressed pixels.*save it as PNG"),
        (lambda: hostile.jpeg_of_empty_scans(1_000, multi_picture=True), "1,000 scans"),
        (lambda: hostile.jpeg_of_empty_scans(60, 7_000), "60 scans"),
        (lambda: hostile.jpeg_of_empty_scans(1, frame=0xC9), "rare variant"),
        (lambda: hostile.jpeg_of_empty_scans(1, frame=0xC3), "rare variant"),
        (lambda: hostile.jpeg_with_segments(50_000, b""), "more than [0-9,]+ parts"),
        (lambda: hostile.jpeg_with_junk(50_000, b"\xff\xd8"), "more than [0-9,]+ parts"),
        (lambda: hostile.jpeg_with_segments(20, (b"\0" + b"\1" * 64) * 1_000, 0xDB), "too many tables"),
        (hostile.png_of_many_chunks, "more than [0-9,]+ parts"),
        (lambda: hostile.png_bomb(8_000, 6_000), "384 MB"),
        (hostile.webp_of_canvas, "16383×16383"),
        (lambda: hostile.webp_of_canvas(7_000, 7_000), "can be sent as JPEG"),
        (lambda: hostile.webp_of_many_frames(50_000), "more than [0-9,]+ parts"),
        (lambda: hostile.gif_of_small_blocks(300_000), "more than [0-9,]+ parts"),
        (lambda: hostile.gif_of_many_comments(300_000), "more than [0-9,]+ parts"),
        (hostile.tiff_of_shared_strips, "most of its data is missing"),
        (hostile.tiff_of_huge_tags, "TIFF file is damaged"),
        (lambda: encode_image(red_image(), "TIFF", compression="jpeg"), r"TIFF of a variant.*\(compressed with JPEG\)"),
        (lambda: encode_image(Image.new("F", (8, 8)), "TIFF"), "floating-point numbers"),
        (lambda: encode_image(red_image(), "TIFF", compression="packbits"), "compressed with PackBits"),
        (lambda: encode_image(red_image(), "BMP")[:-100], "most of its data is missing"),
    ],
    ids=[
        "run lengths", "scans in MPO", "scans of 50 megapixels", "arithmetic coding", "lossless JPEG", "segments",
        "markers", "tables", "chunks", "16-bit PNG", "canvas", "large WebP", "frames", "blocks", "comments",
        "shared strips", "shared tags", "JPEG in TIFF", "floats in TIFF", "PackBits in TIFF", "short BMP",
    ],
)  # fmt: skip
def test_file_whose_cost_cannot_be_bounded_is_refused(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        decode_image(make(), max_pixels=Limits().pixels, min_side=224)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hostile.jpeg_with_segments(19_000, b"Exif\0\0" + bytes(50)),
        lambda: hostile.jpeg_with_segments(100, b"Photoshop 3.0\0" + b"8BIM\0\0\0\0\0\0\0\0" * 5_000, 0xED),
        lambda: hostile.jpeg_with_junk(2_000_000, b"\xff"),
        lambda: hostile.png_with_chunks(hostile.png_chunk(b"eXIf", hostile.exif_of_shared_data())),
        lambda: hostile.png_of_many_chunks(19_000, b"IDAT", b""),
        lambda: hostile.png_of_many_chunks(19_000, b"acTL", bytes(8)),
        lambda: hostile.png_with_chunks(hostile.profile_bomb(50_000_000)),
        lambda: hostile.webp_of_many_frames(15_000),
        lambda: hostile.gif_of_small_blocks(90_000),
    ],
    ids=["EXIF", "Photoshop", "fill bytes", "shared EXIF", "empty data", "animation", "profile", "frames", "comment"],
)
def test_decoder_does_not_see_what_the_pixels_do_not_need(make: Callable[[], bytes]) -> None:
    content = make()

    file = read_image_file(content, max_pixels=10_000)

    assert len(file.content) < 2_000
    assert decode_image(content, max_pixels=10_000).width == file.width


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (encode_image(red_image(), "AVIF"), "AVIF"),
        (b"%PDF-1.7 ...", "PDF"),
        (b'<?xml version="1.0"?><svg xmlns="...">', "SVG"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\0\0\0\x20ftypisom", "video"),
    ],
)
def test_format_that_is_not_accepted_is_named_with_those_that_are(content: bytes, name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name}, is not accepted; send the image as JPEG, PNG, WebP") as caught:
        decode_image(content, max_pixels=10_000)

    assert caught.value.reason == "unreadable"


HEIC_START = b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHEMiPrmiafMiHBheic"


@pytest.mark.skipif(can_read_heif(), reason="pillow-heif is installed")
def test_heic_is_refused_by_name_without_its_decoder() -> None:
    with pytest.raises(InvalidInput, match=r"HEIC, is not accepted; send the image as JPEG.*installing .*pillow-heif"):
        decode_image(HEIC_START, max_pixels=10_000)

    assert "image/heic" not in IMAGE_UPLOAD.media_types


@pytest.mark.skipif(not can_read_heif(), reason="pillow-heif is not installed")
def test_heic_is_decoded() -> None:
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(red_image(64, 64)).save(file, quality=90)

    decoded = decode_image(file.getvalue(), max_pixels=10_000)

    assert (decoded.width, decoded.height) == (64, 64)
    assert decoded.image.getpixel((40, 20))[0] > 200  # type: ignore[index]
    assert "image/heic" in IMAGE_UPLOAD.media_types
    with pytest.raises(InvalidInput, match="HEIC file is damaged"):
        decode_image(HEIC_START, max_pixels=10_000)


def test_photo_of_fifty_megapixels_is_accepted() -> None:
    content = encode_image(Image.new("L", (8_660, 5_773), 128), "JPEG", progressive=True)

    decoded = decode_image(content, max_pixels=Limits().pixels, min_side=224)

    assert (decoded.width, decoded.height) == (8_660, 5_773)
    assert max(decoded.image.size) < 1_100


def test_large_image_without_a_smaller_decoding_is_reduced_before_it_is_converted() -> None:
    image = Image.new("RGBA", (3_900, 3_840), (200, 0, 0, 128))

    decoded = decode_image(encode_image(image), max_pixels=Limits().pixels, min_side=224)

    assert (decoded.width, decoded.height) == (3_900, 3_840)
    assert decoded.image.size == (1_300, 1_280)
    assert decoded.image.getpixel((600, 600)) == (227, 127, 127)


def wide_gamut_profile() -> bytes:
    """A profile like sRGB, but with red and green exchanged, so that every difference is seen."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = content.index(b"rXYZ"), content.index(b"gXYZ")
    content[red : red + 4], content[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_of_a_profile_are_converted_to_srgb(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode_image(Image.new("RGB", (32, 32), (230, 20, 10)), kind, icc_profile=wide_gamut_profile(), **options)

    red, green, _ = decode_image(content, max_pixels=10_000).image.getpixel((5, 5))  # type: ignore[misc]

    assert green > 200 > 100 > red


def test_transparent_image_is_converted_to_srgb_too() -> None:
    image = Image.new("RGBA", (32, 32), (230, 20, 10, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))

    decoded = decode_image(encode_image(image, icc_profile=wide_gamut_profile()), max_pixels=10_000)

    assert decoded.image.getpixel((5, 5))[1] > 200  # type: ignore[index]
    assert decoded.image.getpixel((0, 0)) == (255, 255, 255)


def test_profile_of_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))

    decoded = decode_image(encode_image(image, icc_profile=profile), max_pixels=10_000)

    assert np.array_equal(np.asarray(decoded.image), np.asarray(image))
    assert decoded.notices == ()


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile",
        wide_gamut_profile()[:200],
        wide_gamut_profile().replace(b"RGB XYZ ", b"CMYKXYZ "),
        wide_gamut_profile().replace(b"cprt", b"D2B0", 1),
        wide_gamut_profile() + bytes(5_000_000),
    ],
    ids=["text", "cut", "of CMYK", "with unbounded steps", "too large"],
)
def test_unusable_profile_is_ignored_with_a_notice(profile: bytes) -> None:
    decoded = decode_image(encode_image(red_image(), icc_profile=profile), max_pixels=10_000)

    assert decoded.image.getpixel((40, 20)) == (230, 20, 10)
    assert "colour profile" in decoded.notices[0]


def test_the_format_of_a_file_is_told_by_its_first_bytes():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "WEBP")

    assert format_of(file.getvalue()) == "WebP"
    assert format_of(b"\0\0\0\x18ftypheic") == "HEIC"
    assert format_of(b"nothing") == ""
