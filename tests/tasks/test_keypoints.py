"""Keypoints: points mapped back to images of any size, and drawn on them."""

import base64
import io
import itertools
import json
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks._drawing import draw_points
from tasks._examples import synthetic_face
from tasks._images import DecodedImage, Frame, same_image
from tasks.contract import Arrays, InvalidInput, InvalidOutput, Limits
from tasks.keypoints import Keypoints, KeypointsAnswer, to_image_points
from tests.images import encode_image, exif_rotated_jpeg, red_image
from tests.model_folders import runner
from tests.tiny.keypoints import TASK, graph

SQUARE = Keypoints(names=("a", "b"), size=64, links=((0, 1),))


def constant_network(*points: tuple[float, float], confidence: float = 0.5) -> Any:
    """Return a network that finds these points in any image."""

    def run(arrays: Arrays) -> Arrays:
        count = len(arrays["image"])
        return {
            "points": np.tile(np.array(points, np.float32), (count, 1, 1)),
            "confidence": np.full((count, len(points)), confidence, np.float32),
        }

    return run


def predict(task: Keypoints, run: Any, content: bytes, **more: Any) -> KeypointsAnswer:
    answer = task.answer(run, {"image": content, **more})
    assert isinstance(answer, KeypointsAnswer)
    return answer


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.floats(0, 1), st.floats(0, 1))
def test_points_are_mapped_to_the_image_within_half_a_pixel(width: int, height: int, x: float, y: float) -> None:
    if max(width, height) > 64 * min(width, height):
        height = width
    decoded = DecodedImage(Image.new("RGB", (width, height)), width, height)
    samples = SQUARE.preprocess(decoded)
    frame: Frame = samples.context[0]
    expected = np.array([[x * width, y * height], [0.0, 0.0]])
    outputs = {
        "points": frame.to_network(expected)[np.newaxis].astype(np.float32),
        "confidence": np.zeros((1, 2), np.float32),
    }

    answer = SQUARE.postprocess(outputs, samples, SQUARE.parse({"image": b"any"}, Limits()))

    actual = np.array([[point.x, point.y] for point in answer.points])
    assert (answer.width, answer.height) == (width, height)
    assert np.abs(actual - expected).max() < 0.5


def test_graph_locates_the_centre_of_each_colour() -> None:
    image = Image.new("RGB", (320, 160))
    for colour, left in (("red", 40), ("lime", 140), ("blue", 240)):
        image.paste(colour, (left, 40, left + 40, 80))

    answer = predict(TASK, runner(graph()), encode_image(image))

    centres = [(point.name, point.x, point.y) for point in answer.points]
    assert [name for name, _, _ in centres] == ["red", "green", "blue"]
    # The border adds the same amount of every colour, so only the order of the centres is known.
    assert centres[0][1] < centres[1][1] < centres[2][1]


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.floats(-1e4, 1e4)] * 4))
def test_points_outside_the_image_are_clipped_to_its_edge(coordinates: tuple[float, float, float, float]) -> None:
    answer = predict(SQUARE, constant_network(coordinates[:2], coordinates[2:]), encode_image(red_image(120, 60)))

    assert all(0 <= point.x <= 120 and 0 <= point.y <= 60 for point in answer.points)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_points_that_are_not_finite_raise_invalid_output(value: float) -> None:
    with pytest.raises(InvalidOutput, match="no finite points"):
        predict(SQUARE, constant_network((value, 1.0), (2.0, 3.0)), encode_image(red_image()))


def test_nan_confidence_raises_invalid_output() -> None:
    with pytest.raises(InvalidOutput):
        predict(SQUARE, constant_network((1.0, 1.0), (2.0, 3.0), confidence=np.nan), encode_image(red_image()))


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (1, 300), (3000, 150), (4000, 3000)], ids=["one pixel", "a line", "panorama", "12 MP"]
)
def test_overlay_of_any_image_has_bounded_size(width: int, height: int) -> None:
    content = encode_image(Image.new("RGB", (width, height), "grey"), "JPEG")

    answer = predict(SQUARE, constant_network((32.0, 32.0), (40.0, 32.0)), content, overlay=True)

    assert answer.overlay is not None
    drawn = Image.open(io.BytesIO(answer.overlay.file))
    assert (answer.width, answer.height) == (width, height)
    assert drawn.size == (answer.overlay.width, answer.overlay.height)
    assert 512 <= max(drawn.size) <= 1280


def test_palette_animated_and_rotated_images_are_answered() -> None:
    palette = red_image().convert("P")
    palette.info["transparency"] = 0
    file = io.BytesIO()
    red_image().save(file, "PNG", save_all=True, append_images=[Image.new("RGB", (60, 40), "blue")])
    contents = [encode_image(palette), file.getvalue(), exif_rotated_jpeg(red_image())]

    sizes = [
        (a.width, a.height)
        for a in (predict(SQUARE, constant_network((1, 1), (2, 2)), content) for content in contents)
    ]

    assert sizes == [(60, 40), (60, 40), (60, 40)]


def test_invalid_image_is_rejected() -> None:
    for content in (b"", b"not an image", encode_image(red_image(), "AVIF")):
        with pytest.raises(InvalidInput):
            predict(SQUARE, constant_network((1, 1), (2, 2)), content)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_overlay_shows_points_at_their_positions(kind: str) -> None:
    content = encode_image(Image.new("RGB", (640, 640), "black"))

    answer = predict(
        SQUARE, constant_network((16.0, 16.0), (48.0, 16.0), confidence=1.0), content, overlay=True, overlay_kind=kind
    )

    assert answer.overlay is not None
    drawn = Image.open(io.BytesIO(answer.overlay.file))
    assert (drawn.format or "").lower() == kind
    pixels = np.asarray(drawn.convert("RGB"), int)
    assert pixels[160, 160, 1] > 180, "a confident point is green"
    assert pixels[160, 480, 1] > 180
    assert pixels[160, 320].min() > 100, "a white line connects them"
    assert pixels[400, 320].max() < 30


def test_representations_refer_to_existing_fields() -> None:
    for representation in TASK.representations:
        body = {**TASK.example(), **representation.fields}

        answer: Any = TASK.answer(runner(graph()), body)

        if representation.file:
            file: Any = reduce(getattr, representation.file.split("."), answer)
            kind = Image.open(io.BytesIO(file)).format
            assert f"image/{(kind or '').lower()}" == representation.media_type


def test_options_are_parsed_from_text() -> None:
    request: Any = TASK.parse({"image": synthetic_face(), "overlay": "true", "overlay_kind": "png"}, Limits())

    assert (request.overlay, request.overlay_kind) == (True, "png")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-20, 100), min_size=6, max_size=6), st.floats(-1e-3, 1e-3))
def test_moving_a_point_by_a_thousandth_changes_levels_by_at_most_one(numbers: list[float], by: float) -> None:
    pixels = np.full((60, 80, 3), 90, np.uint8)
    points, colours = np.array(numbers).reshape(3, 2), np.full((3, 3), 250.0)
    links = list(itertools.combinations(range(3), 2))

    first, second = (draw_points(pixels, moved, links, colours=colours) for moved in (points, points + by))

    assert np.abs(first.astype(int) - second.astype(int)).max() <= 1


def test_overlay_with_different_rounding_matches_the_golden_one() -> None:
    first, second = (
        predict(SQUARE, constant_network((20.0 + by, 20.0), (40.0, 31.0 - by)), synthetic_face(), overlay=True).plain()
        for by in (0.0, 1e-3)
    )

    assert same_image(first["overlay"]["file"], second["overlay"]["file"])


def test_example_image_is_small_and_examples_use_every_option() -> None:
    examples = TASK.examples()

    assert len(base64.b64decode(examples[0]["image"])) < 10_000
    assert [example.get("overlay", False) for example in examples] == [False, True]
    assert json.loads(json.dumps(examples)) == examples


def test_points_inside_the_image_are_not_clipped() -> None:
    frame = Frame(100, 50, 0.5, 0.5, 0.0, 12.5)

    assert to_image_points(np.array([[25.0, 25.0], [60.0, 0.0]]), frame).tolist() == [[50.0, 25.0], [100.0, 0.0]]
