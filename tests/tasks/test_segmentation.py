"""Segmentation: masks of images of any size and shape, in every representation."""

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


def predict(image: bytes, task: Segmentation = TASK, **more: Any) -> SegmentationAnswer:
    answer = task.answer(RUN, {"image": image, **more})
    assert isinstance(answer, SegmentationAnswer)
    return answer


def mask_of(answer: SegmentationAnswer) -> NDArray[np.uint8]:
    assert answer.mask_png is not None
    return np.asarray(Image.open(io.BytesIO(answer.mask_png)))


def halves(width: int, height: int) -> NDArray[np.uint8]:
    """Return an image that is dark on the left and bright on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 250
    return pixels


@settings(max_examples=150, deadline=None)
@given(sides, sides, fits, st.floats(0, 1), st.floats(0, 1))
def test_frames_map_points_to_a_window_and_back_within_half_a_pixel(
    width: int, height: int, fit: Any, x: float, y: float
) -> None:
    task = replace(TASK, fit=fit)
    view = task.preprocess(blank(width, height)).context
    point = np.array([x * width, y * height])

    network_points = [frame.to_network(point) for frame in view.frames]

    assert all(
        np.abs(frame.to_image(network_point) - point).max() < 0.5
        for frame, network_point in zip(view.frames, network_points, strict=True)
    )
    inside = [((p >= -1e-6) & (p <= np.array([task.width, task.height]) + 1e-6)).all() for p in network_points]
    assert any(inside)


@settings(max_examples=150, deadline=None)
@given(sides, sides, fits)
def test_source_indices_are_the_nearest_pixels_in_a_window(width: int, height: int, fit: Any) -> None:
    task = replace(TASK, fit=fit)
    view = task.preprocess(blank(width, height)).context

    for axis, size, length in ((0, height, task.height), (1, width, task.width)):
        indices = view.source_indices(axis, length)
        window, position = indices // length, indices % length
        scales = np.array([(frame.scale_y, frame.scale_x)[axis] for frame in view.frames])[window]
        offsets = np.array([(frame.offset_y, frame.offset_x)[axis] for frame in view.frames])[window]
        exact = (np.arange(size) + 0.5) * scales + offsets

        assert indices.shape == (size,)
        assert (np.diff(indices) >= 0).all()
        assert np.abs(position + 0.5 - exact).max() <= 0.5 + 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), fits)
def test_mask_has_the_size_of_the_image_and_shares_are_fractions_of_its_pixels(
    width: int, height: int, fit: Any
) -> None:
    answer = predict(png(halves(width, height)), replace(TASK, fit=fit))

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
def test_edge_in_the_image_is_located_within_a_pixel_of_the_network(size: tuple[int, int], fit: Any) -> None:
    width, height = size
    task = replace(TASK, fit=fit)
    view = task.preprocess(blank(width, height)).context

    mask = mask_of(predict(png(halves(width, height)), task))

    margin = 1 + 1.5 / view.frames[0].scale_x  # Resizing blurs the edge.
    middle = width // 2
    assert (mask[:, : max(0, int(middle - margin))] == 0).all()
    assert (mask[:, int(middle + margin) + 1 :] == 2).all()


def test_panorama_is_cut_into_windows_that_preserve_detail() -> None:
    pixels = np.zeros((100, 2000, 3), np.uint8)
    stripes = np.arange(2000) // 50 % 2 == 1
    pixels[:, stripes] = 250
    samples = TASK.preprocess(DecodedImage(Image.fromarray(pixels), 2000, 100))

    mask = mask_of(predict(png(pixels)))

    assert len(samples) == 20
    assert (mask == np.where(stripes, 2, 0)).mean() > 0.9
    assert all(frame.scale_x == pytest.approx(0.24, rel=0.02) for frame in samples.context.frames)


@pytest.mark.parametrize(
    ("size", "windows"), [((64, 48), 1), ((128, 48), 1), ((129, 48), 3), ((32, 49), 3), ((9000, 1), 24)]
)
def test_only_elongated_images_are_cut_and_the_number_of_windows_is_limited(
    size: tuple[int, int], windows: int
) -> None:
    assert len(TASK.preprocess(blank(*size))) == windows


def test_mask_of_a_jpeg_decoded_smaller_has_the_original_size() -> None:
    image = Image.fromarray(halves(1600, 1200))

    answer = predict(encode_image(image, "JPEG"))

    mask = mask_of(answer)
    assert mask.shape == (1200, 1600)
    assert (mask[:, :700] == 0).all()
    assert (mask[:, 900:] == 2).all()


def test_one_pixel_image_is_answered_in_every_representation() -> None:
    pixel = png(np.full((1, 1, 3), 250, np.uint8))

    assert mask_of(predict(pixel)).tolist() == [[2]]
    assert predict(pixel, mask="rle").mask_rle[0].counts == [0, 1]  # type: ignore[index]
    assert predict(pixel, mask="polygons").polygons[0].rings == [[(0, 0), (1, 0), (1, 1), (0, 1)]]  # type: ignore[index]


def test_run_lengths_and_polygons_match_the_mask() -> None:
    content = png(halves(64, 48))

    mask, rle, polygons = mask_of(predict(content)), predict(content, mask="rle"), predict(content, mask="polygons")

    assert rle.mask_rle is not None
    assert {runs.label: sum(runs.counts[1::2]) for runs in rle.mask_rle} == {
        TASK.labels[label]: int((mask == label).sum()) for label in np.unique(mask)
    }
    assert {runs.size for runs in rle.mask_rle} == {(48, 64)}
    assert polygons.polygons is not None
    assert sum(region.area for region in polygons.polygons) == 64 * 48
    assert polygons.polygons[0].rings[0][0] in {(0, 0), (32, 0), (33, 0)}
    assert rle.mask_png is polygons.mask_png is None


def test_tiny_regions_are_in_the_mask_but_not_in_the_polygons() -> None:
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[5, 5] = 250
    pixels[10:14, 10:14] = 250

    mask, answer = mask_of(predict(png(pixels))), predict(png(pixels), mask="polygons")

    assert mask[5, 5] == 2
    assert [(region.label, region.area) for region in answer.polygons or ()] == [("dark", 751), ("bright", 16)]


def test_confidence_is_the_mean_over_the_pixels_of_a_label() -> None:
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[:, 16:] = (255, 255, 204)
    pixels[:, :16] = (0, 0, 51)

    confidences = {entry.label: entry.confidence for entry in predict(png(pixels)).classes}

    assert confidences == {"dark": pytest.approx(0.2), "bright": pytest.approx(0.8)}


def test_palette_has_the_colours_of_the_task() -> None:
    task = replace(TASK, colours=((1, 2, 3), (40, 50, 60), (250, 251, 252)))

    answer = predict(png(halves(64, 48)), task)

    image = Image.open(io.BytesIO(answer.mask_png or b"")).convert("RGB")
    assert image.getpixel((0, 0)) == (1, 2, 3)
    assert image.getpixel((63, 0)) == (250, 251, 252)
    assert {entry.label: entry.colour for entry in answer.classes}["bright"] == "#fafbfc"


def test_overlay_is_scaled_down_and_comes_without_a_mask() -> None:
    answer = predict(png(halves(2000, 1500)), mask="none", overlay=True)

    assert answer.mask_png is answer.mask_rle is answer.polygons is None
    assert Image.open(io.BytesIO(answer.overlay_jpeg or b"")).size == (1280, 960)


def test_options_are_parsed_from_text() -> None:
    request = TASK.parse({"image": b"x", "mask": "none", "overlay": "true"}, Limits())

    assert (request.mask, request.overlay) == ("none", True)  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match="polygons"):
        TASK.parse({"image": b"x", "mask": "jpeg"}, Limits())


@pytest.mark.parametrize("representation", TASK.representations, ids=lambda representation: representation.media_type)
def test_every_representation_produces_its_file(representation: Any) -> None:
    answer = TASK.answer(RUN, {**TASK.example(), **representation.fields})

    if representation.file:
        content = getattr(answer, representation.file)
        assert Image.open(io.BytesIO(content)).format == representation.media_type.partition("/")[2].upper()
    else:
        assert isinstance(answer, TASK.answer_type)


def test_unknown_label_index_raises_invalid_output() -> None:
    samples = TASK.preprocess(blank(32, 24))
    outputs: Arrays = {name: np.full((1, 24, 32), 3, np.uint8) for name in ("mask", "confidence")}

    with pytest.raises(InvalidOutput, match="does not exist"):
        TASK.postprocess(outputs, samples, TASK.request_type(image=b""))


def test_image_with_too_many_pixels_is_rejected() -> None:
    with pytest.raises(InvalidInput, match="at most 10,000") as caught:
        TASK.answer(RUN, {"image": encode_image(red_image(200, 100), "PNG")}, Limits(pixels=10_000))

    assert caught.value.reason == "too_large"


def test_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.fromarray(halves(64, 48)), Image.new("RGB", (64, 48))]
    animated = encode_image(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    assert np.array_equal(mask_of(predict(animated)), mask_of(predict(png(halves(64, 48)))))


def test_transparent_palette_entry_is_composited_on_white() -> None:
    image = Image.fromarray(halves(64, 48)).quantize(4)
    dark = image.getpixel((0, 0))

    mask = mask_of(predict(encode_image(image, "PNG", transparency=dark)))

    assert (mask == 2).all()


def test_examples_are_small_and_have_reproducible_answers() -> None:
    bodies = TASK.examples()

    assert {body.get("mask", "png") for body in bodies} == {"png", "none"}
    assert any(body.get("overlay") for body in bodies)
    for body in bodies:
        first, second = TASK.answer(RUN, body).plain(), TASK.answer(RUN, body).plain()
        assert first == second
    assert sum(len(body["image"]) for body in bodies) < 80_000


def test_synthetic_scenes_are_distinct_and_reproducible() -> None:
    scenes = [synthetic_scene(number) for number in range(5)]

    assert len(set(scenes)) == 5
    assert scenes == [synthetic_scene(number) for number in range(5)]


def test_masks_that_differ_in_a_pixel_or_two_match_as_goldens() -> None:
    pixels = np.zeros((40, 40), np.uint8)
    changed = pixels.copy()
    changed[0, :2] = 1

    first, second = (base64.b64encode(png(Image.fromarray(mask).convert("P"))).decode() for mask in (pixels, changed))

    assert is_image_file(first)
    assert same_image(first, second)
