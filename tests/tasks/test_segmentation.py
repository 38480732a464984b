"""A mask in the pixels of the picture that was sent, whatever its size and shape, in each of its forms."""

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from tasks._examples import synthetic_scene
from tasks._images import DecodedImage, is_image_file, same_image
from tasks.contract import Arrays, InvalidInput, InvalidOutput, Limits
from tasks.segmentation import Segmentation, SegmentationAnswer
from tests.images import encode_image, red_image
from tests.model_folders import runner
from tests.tiny.segmentation import TASK, graph

RUN = runner(graph())
sides = st.one_of(st.integers(1, 60), st.integers(1, 2500))
fits = st.sampled_from(["pad", "squash"])


def blank(width: int, height: int, content: str = "black") -> DecodedImage:
    return DecodedImage(Image.new("RGB", (width, height), content), width, height)


def png(pixels: NDArray[np.uint8] | Image.Image) -> bytes:
    return encode_image(pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels), "PNG")


def asked(image: bytes, task: Segmentation = TASK, **more: Any) -> SegmentationAnswer:
    answer = task.answer(RUN, {"image": image, **more})
    assert isinstance(answer, SegmentationAnswer)
    return answer


def mask_of(answer: SegmentationAnswer) -> NDArray[np.uint8]:
    assert answer.mask_png is not None
    return np.asarray(Image.open(io.BytesIO(answer.mask_png)))


def halves(width: int, height: int) -> NDArray[np.uint8]:
    """Dark on the left, bright on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 250
    return pixels


@settings(max_examples=150, deadline=None)
@given(sides, sides, fits, st.floats(0, 1), st.floats(0, 1))
def test_a_point_goes_to_a_window_that_sees_it_and_comes_back_within_half_a_pixel(
    width: int, height: int, fit: Any, x: float, y: float
) -> None:
    task = replace(TASK, fit=fit)
    seen = task.preprocess(blank(width, height)).context
    point = np.array([x * width, y * height])

    there = [frame.to_network(point) for frame in seen.frames]

    assert all(np.abs(frame.to_image(t) - point).max() < 0.5 for frame, t in zip(seen.frames, there, strict=True))
    inside = [((t >= -1e-6) & (t <= np.array([task.width, task.height]) + 1e-6)).all() for t in there]
    assert any(inside)


@settings(max_examples=150, deadline=None)
@given(sides, sides, fits)
def test_each_pixel_of_the_picture_is_taken_from_the_place_where_a_window_sees_it(
    width: int, height: int, fit: Any
) -> None:
    task = replace(TASK, fit=fit)
    seen = task.preprocess(blank(width, height)).context

    for axis, size, length in ((0, height, task.height), (1, width, task.width)):
        places = seen.source_indices(axis, length)
        window, place = places // length, places % length
        scales = np.array([(frame.scale_y, frame.scale_x)[axis] for frame in seen.frames])[window]
        offsets = np.array([(frame.offset_y, frame.offset_x)[axis] for frame in seen.frames])[window]
        exact = (np.arange(size) + 0.5) * scales + offsets

        assert places.shape == (size,)
        assert (np.diff(places) >= 0).all()
        assert np.abs(place + 0.5 - exact).max() <= 0.5 + 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), fits)
def test_the_mask_has_the_size_of_the_picture_and_the_shares_are_its_pixels(width: int, height: int, fit: Any) -> None:
    answer = asked(png(halves(width, height)), replace(TASK, fit=fit))

    mask = mask_of(answer)
    counts = np.bincount(mask.ravel(), minlength=3)
    assert (answer.width, answer.height) == (width, height)
    assert mask.shape == (height, width)
    assert {entry.label: round(entry.share * mask.size) for entry in answer.classes} == {
        label: int(count) for label, count in zip(TASK.labels, counts, strict=True) if count
    }
    assert [entry.share for entry in answer.classes] == sorted((entry.share for entry in answer.classes), reverse=True)


@pytest.mark.parametrize("size", [(64, 48), (640, 120), (50, 400), (2000, 100), (100, 2000), (3, 60)])
@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_a_border_in_the_picture_is_found_within_a_pixel_of_the_network(size: tuple[int, int], fit: Any) -> None:
    width, height = size
    task = replace(TASK, fit=fit)
    seen = task.preprocess(blank(width, height)).context

    mask = mask_of(asked(png(halves(width, height)), task))

    reach = 1 + 1.5 / seen.frames[0].scale_x  # Resizing blurs the border itself.
    middle = width // 2
    assert (mask[:, : max(0, int(middle - reach))] == 0).all()
    assert (mask[:, int(middle + reach) + 1 :] == 2).all()


def test_a_panorama_is_cut_into_windows_and_its_details_are_seen() -> None:
    pixels = np.zeros((100, 2000, 3), np.uint8)
    stripes = np.arange(2000) // 50 % 2 == 1
    pixels[:, stripes] = 250
    samples = TASK.preprocess(DecodedImage(Image.fromarray(pixels), 2000, 100))

    mask = mask_of(asked(png(pixels)))

    assert len(samples) == 20
    assert (mask == np.where(stripes, 2, 0)).mean() > 0.9
    assert all(frame.scale_x == pytest.approx(0.24, rel=0.02) for frame in samples.context.frames)


@pytest.mark.parametrize(
    ("size", "windows"), [((64, 48), 1), ((128, 48), 1), ((129, 48), 3), ((32, 49), 3), ((9000, 1), 24)]
)
def test_only_what_is_far_longer_than_the_network_is_cut_and_never_into_very_many(
    size: tuple[int, int], windows: int
) -> None:
    assert len(TASK.preprocess(blank(*size))) == windows


def test_a_jpeg_decoded_smaller_than_it_is_gives_a_mask_of_its_own_size() -> None:
    image = Image.fromarray(halves(1600, 1200))

    answer = asked(encode_image(image, "JPEG"))

    mask = mask_of(answer)
    assert mask.shape == (1200, 1600)
    assert (mask[:, :700] == 0).all()
    assert (mask[:, 900:] == 2).all()


def test_a_picture_of_one_pixel_is_answered_in_each_form() -> None:
    pixel = png(np.full((1, 1, 3), 250, np.uint8))

    assert mask_of(asked(pixel)).tolist() == [[2]]
    assert asked(pixel, mask="rle").mask_rle[0].counts == [0, 1]  # type: ignore[index]
    assert asked(pixel, mask="polygons").polygons[0].rings == [[(0, 0), (1, 0), (1, 1), (0, 1)]]  # type: ignore[index]


def test_run_lengths_and_polygons_hold_the_mask() -> None:
    content = png(halves(64, 48))

    mask, rle, polygons = mask_of(asked(content)), asked(content, mask="rle"), asked(content, mask="polygons")

    assert rle.mask_rle is not None
    assert {runs.label: sum(runs.counts[1::2]) for runs in rle.mask_rle} == {
        TASK.labels[label]: int((mask == label).sum()) for label in np.unique(mask)
    }
    assert {runs.size for runs in rle.mask_rle} == {(48, 64)}
    assert polygons.polygons is not None
    assert sum(region.area for region in polygons.polygons) == 64 * 48
    assert polygons.polygons[0].rings[0][0] in {(0, 0), (32, 0), (33, 0)}
    assert rle.mask_png is polygons.mask_png is None


def test_specks_are_in_the_mask_and_not_among_the_polygons() -> None:
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[5, 5] = 250
    pixels[10:14, 10:14] = 250

    mask, answer = mask_of(asked(png(pixels))), asked(png(pixels), mask="polygons")

    assert mask[5, 5] == 2
    assert [(region.label, region.area) for region in answer.polygons or ()] == [("dark", 751), ("bright", 16)]


def test_confidence_is_the_mean_over_a_labels_pixels() -> None:
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[:, 16:] = (255, 255, 204)
    pixels[:, :16] = (0, 0, 51)

    found = {entry.label: entry.confidence for entry in asked(png(pixels)).classes}

    assert found == {"dark": pytest.approx(0.2), "bright": pytest.approx(0.8)}


def test_the_palette_has_the_tasks_colours() -> None:
    task = replace(TASK, colours=((1, 2, 3), (40, 50, 60), (250, 251, 252)))

    answer = asked(png(halves(64, 48)), task)

    image = Image.open(io.BytesIO(answer.mask_png or b"")).convert("RGB")
    assert image.getpixel((0, 0)) == (1, 2, 3)
    assert image.getpixel((63, 0)) == (250, 251, 252)
    assert {entry.label: entry.colour for entry in answer.classes}["bright"] == "#fafbfc"


def test_an_overlay_is_a_smaller_picture_without_a_mask() -> None:
    answer = asked(png(halves(2000, 1500)), mask="none", overlay=True)

    assert answer.mask_png is answer.mask_rle is answer.polygons is None
    assert Image.open(io.BytesIO(answer.overlay_jpeg or b"")).size == (1280, 960)


def test_options_are_read_from_words_as_well() -> None:
    request = TASK.parse({"image": b"x", "mask": "none", "overlay": "true"}, Limits())

    assert (request.mask, request.overlay) == ("none", True)  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match="polygons"):
        TASK.parse({"image": b"x", "mask": "jpeg"}, Limits())


@pytest.mark.parametrize("representation", TASK.representations, ids=lambda representation: representation.media_type)
def test_each_form_sets_fields_that_give_it_its_file(representation: Any) -> None:
    answer = TASK.answer(RUN, {**TASK.example(), **representation.fields})

    if representation.file:
        content = getattr(answer, representation.file)
        assert Image.open(io.BytesIO(content)).format == representation.media_type.partition("/")[2].upper()
    else:
        assert isinstance(answer, TASK.answer_type)


def test_a_label_that_does_not_exist_is_no_answer() -> None:
    samples = TASK.preprocess(blank(32, 24))
    outputs: Arrays = {name: np.full((1, 24, 32), 3, np.uint8) for name in ("mask", "confidence")}

    with pytest.raises(InvalidOutput, match="does not exist"):
        TASK.postprocess(outputs, samples, TASK.request_type(image=b""))


def test_a_picture_of_more_pixels_than_allowed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at most 10,000") as refused:
        TASK.answer(RUN, {"image": encode_image(red_image(200, 100), "PNG")}, Limits(pixels=10_000))

    assert refused.value.reason == "too_large"


def test_an_animation_is_answered_for_its_first_frame_and_a_gif_is_refused() -> None:
    frames = [Image.fromarray(halves(64, 48)), Image.new("RGB", (64, 48))]
    animated = encode_image(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    assert np.array_equal(mask_of(asked(animated)), mask_of(asked(png(halves(64, 48)))))
    with pytest.raises(InvalidInput, match="not an image in JPEG, PNG, WebP or BMP"):
        asked(encoded(frames[0], "GIF"))


def test_what_is_transparent_in_a_palette_png_lies_on_white() -> None:
    image = Image.fromarray(halves(64, 48)).quantize(4)
    dark = image.getpixel((0, 0))

    mask = mask_of(asked(encode_image(image, "PNG", transparency=dark)))

    assert (mask == 2).all()


def test_examples_are_a_mask_and_an_overlay_whose_answers_are_small_and_repeat() -> None:
    bodies = TASK.examples()

    assert {body.get("mask", "png") for body in bodies} == {"png", "none"}
    assert any(body.get("overlay") for body in bodies)
    for body in bodies:
        first, second = TASK.answer(RUN, body).plain(), TASK.answer(RUN, body).plain()
        assert first == second
    assert sum(len(body["image"]) for body in bodies) < 80_000


def test_each_scene_is_another_and_always_the_same() -> None:
    scenes = [synthetic_scene(number) for number in range(5)]

    assert len(set(scenes)) == 5
    assert scenes == [synthetic_scene(number) for number in range(5)]


def test_two_masks_that_differ_in_a_pixel_or_two_are_the_same_golden_picture() -> None:
    pixels = np.zeros((40, 40), np.uint8)
    changed = pixels.copy()
    changed[0, :2] = 1

    one, other = (base64.b64encode(png(Image.fromarray(each).convert("P"))).decode() for each in (pixels, changed))

    assert is_image_file(one)
    assert same_image(one, other)
