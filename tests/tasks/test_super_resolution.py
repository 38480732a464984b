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


def answered(run, image, **fields):
    content = image if isinstance(image, bytes) else encode_image(image)
    return tiny.TASK.answer(run, {"image": content, **fields})


def shown(answer):
    return Image.open(io.BytesIO(answer.image))


SIZES = [(1, 1), (3, 200), (28, 28), (29, 29), (640, 32), (32, 640), (97, 61)]


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_of_any_size_comes_back_twice_as_large_and_without_seams(run, size):
    image = noise(*size)

    answer = answered(run, image)

    assert (answer.width, answer.height) == (2 * size[0], 2 * size[1])
    expected = image.resize((2 * size[0], 2 * size[1]), Image.Resampling.NEAREST)
    assert np.array_equal(np.asarray(expected), np.asarray(shown(answer)))


@given(st.integers(1, 120), st.integers(1, 120))
def test_any_size_does(width, height):
    samples = tiny.TASK.preprocess(tiny.TASK.decode(tiny.TASK.parse(body(noise(width, height)), Limits()), Limits()))
    larger = {"restored": samples.arrays["image"].repeat(2, axis=1).repeat(2, axis=2)}

    restored = tiny.TASK.restore(larger, samples)

    assert tiny.TASK.inputs[0].mismatch(samples.arrays["image"]) is None
    assert np.array_equal(np.asarray(noise(width, height)).repeat(2, 0).repeat(2, 1), restored)


def body(image):
    return {"image": encode_image(image)}


@pytest.mark.parametrize(("kind", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_the_answer_is_a_file_of_the_kind_that_was_asked_for_and_says_that_it_is_generated(run, kind, name):
    answer = answered(run, red_image(), format=kind)

    assert (answer.media_type, answer.scale, answer.generated) == (f"image/{kind}", 2, True)
    assert (shown(answer).format, shown(answer).size) == (name, (120, 80))
    assert "invented" in shown(answer).getexif()[0x010E]


def test_a_form_of_the_answer_for_each_kind_of_file_names_the_field_that_holds_it(run):
    representations = {representation.media_type: representation for representation in SuperResolution.representations}

    for kind in ("png", "jpeg", "webp"):
        representation = representations[f"image/{kind}"]
        answer = answered(run, red_image(), **representation.fields)
        assert getattr(answer, representation.file)
        assert answer.media_type == representation.media_type
    assert representations["application/json"].file is None


def test_a_lower_quality_is_a_smaller_file(run):
    sizes = [len(answered(run, noise(60, 60), format="jpeg", quality=quality).image) for quality in (20, 95)]

    assert sizes[0] < sizes[1] / 2


def test_options_may_be_text_and_are_checked():
    content = encode_image(red_image())
    request = tiny.TASK.parse({"image": content, "format": "jpeg", "quality": "75"}, Limits())

    assert request.quality == 75
    for wrong in ({"format": "gif"}, {"quality": 0}, {"quality": 101}, {"scale": 4}):
        with pytest.raises(ValidationError):
            tiny.TASK.parse({"image": content, **wrong}, Limits())


def header_of(width, height):
    """The first bytes of a PNG of that size: there is nothing after them to decode."""
    whole = encode_image(Image.new("1", (8, 8)))
    start = whole.index(b"IHDR") + 4
    changed = whole[:start] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + whole[start + 8 :]
    crc = zlib.crc32(changed[start - 4 : start + 13]).to_bytes(4, "big")
    return changed[: start + 13] + crc + changed[start + 17 :]


def refused(image, limits=None, **fields):
    content = image if isinstance(image, bytes) else encode_image(image)
    request = tiny.TASK.parse({"image": content, **fields}, Limits())
    with pytest.raises(InvalidInput) as caught:
        tiny.TASK.decode(request, limits or Limits())
    return caught.value


def test_a_picture_whose_answer_would_be_too_large_is_refused_from_its_header():
    problem = refused(header_of(4000, 3000))

    assert problem.reason == "too_large"
    assert "4000×3000" in str(problem)
    assert "1,000,000" in str(problem)
    assert "2 times as wide" in str(problem)


def test_the_largest_picture_that_is_accepted_gives_the_largest_answer():
    limits = Limits(answer_pixels=4 * 60 * 50)

    assert tiny.TASK.decode(tiny.TASK.parse(body(red_image(60, 50)), limits), limits).width == 60
    assert refused(red_image(60, 51), limits).reason == "too_large"


def test_a_thread_of_a_picture_is_refused_for_the_tiles_that_it_would_take():
    problem = refused(Image.new("RGB", (40_000, 1)))

    assert problem.reason == "too_large"
    assert "40000×1" in str(problem)
    assert "tiles of 32×32" in str(problem)


def test_a_picture_smaller_than_a_tile_is_accepted_however_low_the_limit():
    limits = Limits(answer_pixels=4 * 60)

    assert tiny.TASK.decode(tiny.TASK.parse(body(red_image(8, 7)), limits), limits).height == 7


def test_a_file_that_cannot_have_such_sides_is_refused_and_another_kind_is_named():
    limits = Limits(answer_pixels=10**8)
    problem = refused(Image.new("RGB", (9_000, 4)), limits, format="webp")

    assert problem.reason == "too_large"
    assert "16,383" in str(problem)
    assert "png" in str(problem)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"no picture", "unreadable"),
        (encode_image(red_image())[:100], "unreadable"),
        (encode_image(red_image(), "GIF", save_all=True, append_images=[red_image(60, 40).rotate(180)]), "unreadable"),
    ],
    ids=["empty", "text", "cut", "animated GIF"],
)
def test_what_is_no_picture_of_a_kind_that_is_read_is_refused(content, reason):
    assert refused(content).reason == reason


def test_a_palette_with_transparency_lies_on_white(run):
    image = red_image().convert("P", palette=Image.Palette.ADAPTIVE)
    clear = image.getpixel((30, 20))

    answer = shown(answered(run, encode_image(image, transparency=clear)))

    assert answer.mode == "RGB"
    assert answer.getpixel((60, 40)) == (255, 255, 255)


def test_a_picture_on_its_side_is_answered_upright(run):
    answer = answered(run, exif_rotated_jpeg(red_image(60, 40)))

    assert (answer.width, answer.height) == (120, 80)


def test_the_examples_ask_for_each_kind_of_file_and_are_few_tiles():
    task = SuperResolution()
    bodies = task.examples()

    assert {each.get("format", "png") for each in bodies} == {"png", "jpeg", "webp"}
    tiles = [len(task.preprocess(task.decode(task.parse(each, Limits()), Limits()))) for each in bodies]
    assert tiles[0] == 1
    assert max(tiles) > 1
    assert sum(tiles) <= 4
