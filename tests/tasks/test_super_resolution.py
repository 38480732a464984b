"""Super-resolution: images of any size, file formats and limits."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from tasks.contract import InvalidInput, Limits
from tasks.super_resolution import SuperResolution
from tests.images import encode_image, exif_rotated_jpeg, red_image
from tests.model_folders import runner
from tests.tiny import super_resolution as tiny

settings.register_profile("super-resolution", deadline=None)
settings.load_profile("super-resolution")


@pytest.fixture(scope="module")
def run():
    return runner(tiny.graph())


def noise(width, height):
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def predict(run, image, **fields):
    content = image if isinstance(image, bytes) else encode_image(image)
    return tiny.TASK.answer(run, {"image": content, **fields})


def open_image(answer):
    return Image.open(io.BytesIO(answer.image))


SIZES = [(1, 1), (3, 200), (28, 28), (29, 29), (640, 32), (32, 640), (97, 61)]


@pytest.mark.parametrize("size", SIZES)
def test_image_of_any_size_is_doubled_without_seams(run, size):
    image = noise(*size)

    answer = predict(run, image)

    assert (answer.width, answer.height) == (2 * size[0], 2 * size[1])
    expected = image.resize((2 * size[0], 2 * size[1]), Image.Resampling.NEAREST)
    assert np.array_equal(np.asarray(expected), np.asarray(open_image(answer)))


@given(st.integers(1, 120), st.integers(1, 120))
def test_any_size_is_restored_exactly(width, height):
    samples = tiny.TASK.preprocess(tiny.TASK.decode(tiny.TASK.parse(body(noise(width, height)), Limits()), Limits()))
    larger = {"restored": samples.arrays["image"].repeat(2, axis=1).repeat(2, axis=2)}

    restored = tiny.TASK.restore(larger, samples)

    assert tiny.TASK.inputs[0].mismatch(samples.arrays["image"]) is None
    assert np.array_equal(np.asarray(noise(width, height)).repeat(2, 0).repeat(2, 1), restored)


def body(image):
    return {"image": encode_image(image)}


@pytest.mark.parametrize(("kind", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_answer_has_the_requested_format_and_is_marked_as_generated(run, kind, name):
    answer = predict(run, red_image(), format=kind)

    assert (answer.media_type, answer.scale, answer.generated) == (f"image/{kind}", 2, True)
    assert (open_image(answer).format, open_image(answer).size) == (name, (120, 80))
    assert "invented" in open_image(answer).getexif()[0x010E]


def test_every_file_representation_refers_to_the_image_field(run):
    representations = {representation.media_type: representation for representation in SuperResolution.representations}

    for kind in ("png", "jpeg", "webp"):
        representation = representations[f"image/{kind}"]
        answer = predict(run, red_image(), **representation.fields)
        assert getattr(answer, representation.file)
        assert answer.media_type == representation.media_type
    assert representations["application/json"].file is None


def test_lower_quality_gives_a_smaller_file(run):
    sizes = [len(predict(run, noise(60, 60), format="jpeg", quality=quality).image) for quality in (20, 95)]

    assert sizes[0] < sizes[1] / 2


def test_options_are_parsed_from_text_and_validated():
    content = encode_image(red_image())
    request = tiny.TASK.parse({"image": content, "format": "jpeg", "quality": "75"}, Limits())

    assert request.quality == 75
    for wrong in ({"format": "gif"}, {"quality": 0}, {"quality": 101}, {"scale": 4}):
        with pytest.raises(ValidationError):
            tiny.TASK.parse({"image": content, **wrong}, Limits())


def png_header(width, height):
    """Return the first bytes of a PNG of this size, without any pixels."""
    file = encode_image(Image.new("1", (8, 8)))
    start = file.index(b"IHDR") + 4
    changed = file[:start] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + file[start + 8 :]
    crc = zlib.crc32(changed[start - 4 : start + 13]).to_bytes(4, "big")
    return changed[: start + 13] + crc + changed[start + 17 :]


def reject(image, limits=None, **fields):
    content = image if isinstance(image, bytes) else encode_image(image)
    request = tiny.TASK.parse({"image": content, **fields}, Limits())
    with pytest.raises(InvalidInput) as caught:
        tiny.TASK.decode(request, limits or Limits())
    return caught.value


def test_too_large_answer_is_rejected_from_the_header():
    error = reject(png_header(4000, 3000))

    assert error.reason == "too_large"
    assert "4000×3000" in str(error)
    assert "1,000,000" in str(error)
    assert "2 times as wide" in str(error)


def test_pixel_limit_is_exact():
    limits = Limits(answer_pixels=4 * 60 * 50)

    assert tiny.TASK.decode(tiny.TASK.parse(body(red_image(60, 50)), limits), limits).width == 60
    assert reject(red_image(60, 51), limits).reason == "too_large"


def test_elongated_image_is_rejected_because_of_its_tiles():
    error = reject(Image.new("RGB", (40_000, 1)))

    assert error.reason == "too_large"
    assert "40000×1" in str(error)
    assert "tiles of 32×32" in str(error)


def test_image_smaller_than_a_tile_is_accepted_whatever_the_limit():
    limits = Limits(answer_pixels=4 * 60)

    assert tiny.TASK.decode(tiny.TASK.parse(body(red_image(8, 7)), limits), limits).height == 7


def test_format_that_cannot_hold_the_answer_is_rejected_with_an_alternative():
    limits = Limits(answer_pixels=10**8)
    error = reject(Image.new("RGB", (9_000, 4)), limits, format="webp")

    assert error.reason == "too_large"
    assert "16,383" in str(error)
    assert "png" in str(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "unreadable"),
        (encode_image(red_image())[:100], "unreadable"),
        (encode_image(red_image(), "AVIF"), "unreadable"),
    ],
    ids=["empty", "text", "cut", "AVIF"],
)
def test_invalid_image_is_rejected(content, reason):
    assert reject(content).reason == reason


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_transparency_is_kept(run, kind):
    image = red_image().convert("P", palette=Image.Palette.ADAPTIVE)
    clear = image.getpixel((30, 20))

    answer = predict(run, encode_image(image, transparency=clear), format=kind)

    assert open_image(answer).mode == "RGBA"
    assert open_image(answer).getpixel((60, 40))[3] == 0
    assert open_image(answer).getpixel((10, 40))[3] == 255
    assert answer.notices is None


def test_transparent_image_is_put_on_white_for_a_jpeg_and_a_notice_says_so(run):
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))

    answer = predict(run, image, format="jpeg")

    assert open_image(answer).getpixel((60, 40)) == (255, 255, 255)
    assert "transparency" in answer.notices[0]


def test_opaque_alpha_channel_does_not_make_the_answer_transparent(run):
    assert open_image(predict(run, red_image().convert("RGBA"))).mode == "RGB"


def test_colours_of_invisible_pixels_do_not_reach_the_network():
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    image.paste((200, 100, 50, 255), (20, 10, 40, 30))

    decoded = tiny.TASK.decode(tiny.TASK.parse(body(image), Limits()), Limits())

    beside = np.asarray(decoded.image)[8:32, 18:42]
    assert np.abs(beside.astype(int) - (200, 100, 50)).max() <= 8  # Rounded where nearly invisible.


def test_rotated_image_is_answered_upright(run):
    answer = predict(run, exif_rotated_jpeg(red_image(60, 40)))

    assert (answer.width, answer.height) == (120, 80)


def test_examples_cover_every_format_with_few_tiles():
    task = SuperResolution()
    bodies = task.examples()

    assert {request.get("format", "png") for request in bodies} == {"png", "jpeg", "webp"}
    tiles = [len(task.preprocess(task.decode(task.parse(request, Limits()), Limits()))) for request in bodies]
    assert tiles[0] == 1
    assert max(tiles) > 1
    assert sum(tiles) <= 4
