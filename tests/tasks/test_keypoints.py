"""Points led back into the picture that was sent, whatever its size, and drawn on it."""

import base64
import io
import itertools
import json
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
from tests.images import encoded, red, rotated_by_exif
from tests.model_folders import runner
from tests.tiny.keypoints import TASK, graph

SQUARE = Keypoints(names=("a", "b"), size=64, links=((0, 1),))


def says(*points: tuple[float, float], confidence: float = 0.5) -> Any:
    """A graph that finds these points in whatever it is shown."""

    def run(arrays: Arrays) -> Arrays:
        count = len(arrays["image"])
        return {
            "points": np.tile(np.array(points, np.float32), (count, 1, 1)),
            "confidence": np.full((count, len(points)), confidence, np.float32),
        }

    return run


def answered(task: Keypoints, run: Any, content: bytes, **more: Any) -> KeypointsAnswer:
    answer = task.answer(run, {"image": content, **more})
    assert isinstance(answer, KeypointsAnswer)
    return answer


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.floats(0, 1), st.floats(0, 1))
def test_a_point_found_in_the_square_is_answered_within_half_a_pixel_of_where_it_is(
    width: int, height: int, x: float, y: float
) -> None:
    if max(width, height) > 64 * min(width, height):
        height = width
    picture = DecodedImage(Image.new("RGB", (width, height)), width, height)
    samples = SQUARE.preprocess(picture)
    frame: Frame = samples.context[0]
    wanted = np.array([[x * width, y * height], [0.0, 0.0]])
    outputs = {
        "points": frame.to_network(wanted)[np.newaxis].astype(np.float32),
        "confidence": np.zeros((1, 2), np.float32),
    }

    answer = SQUARE.postprocess(outputs, samples, SQUARE.parse({"image": b"any"}, Limits()))

    got = np.array([[point.x, point.y] for point in answer.points])
    assert (answer.width, answer.height) == (width, height)
    assert np.abs(got - wanted).max() < 0.5


def test_a_real_graph_finds_the_middle_of_each_colour() -> None:
    image = Image.new("RGB", (320, 160))
    for colour, left in (("red", 40), ("lime", 140), ("blue", 240)):
        image.paste(colour, (left, 40, left + 40, 80))

    answer = answered(TASK, runner(graph()), encode_image(image))

    middles = [(point.name, point.x, point.y) for point in answer.points]
    assert [name for name, _, _ in middles] == ["red", "green", "blue"]
    # The border around a picture that is wider than high has its own colours, evenly: only the order is told here.
    assert middles[0][1] < middles[1][1] < middles[2][1]


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.floats(-1e4, 1e4)] * 4))
def test_points_beyond_the_picture_are_answered_at_its_edge(where: tuple[float, float, float, float]) -> None:
    answer = answered(SQUARE, says(where[:2], where[2:]), encode_image(red_image(120, 60)))

    assert all(0 <= point.x <= 120 and 0 <= point.y <= 60 for point in answer.points)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_finds_no_number_gives_no_answer(value: float) -> None:
    with pytest.raises(InvalidOutput, match="no finite points"):
        answered(SQUARE, says((value, 1.0), (2.0, 3.0)), encode_image(red_image()))


def test_a_confidence_that_is_no_number_gives_no_answer_either() -> None:
    with pytest.raises(InvalidOutput):
        answered(SQUARE, says((1.0, 1.0), (2.0, 3.0), confidence=np.nan), encode_image(red_image()))


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (1, 300), (3000, 150), (4000, 3000)], ids=["one pixel", "a line", "panorama", "12 MP"]
)
def test_pictures_of_any_shape_are_answered_with_an_overlay_of_bounded_size(width: int, height: int) -> None:
    content = encode_image(Image.new("RGB", (width, height), "grey"), "JPEG")

    answer = answered(SQUARE, says((32.0, 32.0), (40.0, 32.0)), content, overlay=True)

    assert answer.overlay is not None
    drawn = Image.open(io.BytesIO(answer.overlay.file))
    assert (answer.width, answer.height) == (width, height)
    assert drawn.size == (answer.overlay.width, answer.overlay.height)
    assert 512 <= max(drawn.size) <= 1280


def test_animations_palettes_and_pictures_on_their_side_are_answered() -> None:
    palette = red_image().convert("P")
    palette.info["transparency"] = 0
    file = io.BytesIO()
    red_image().save(file, "PNG", save_all=True, append_images=[Image.new("RGB", (60, 40), "blue")])
    contents = [encode_image(palette), file.getvalue(), exif_rotated_jpeg(red_image())]

    sizes = [(a.width, a.height) for a in (answered(SQUARE, says((1, 1), (2, 2)), content) for content in contents)]

    assert sizes == [(60, 40), (60, 40), (60, 40)]


def test_what_is_no_picture_is_refused() -> None:
    gif = encode_image(red_image(), "GIF")

    for content in (b"", b"no picture", gif):
        with pytest.raises(InvalidInput):
            answered(SQUARE, says((1, 1), (2, 2)), content)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_an_overlay_shows_its_points_where_they_are(kind: str) -> None:
    content = encode_image(Image.new("RGB", (640, 640), "black"))

    answer = answered(
        SQUARE, says((16.0, 16.0), (48.0, 16.0), confidence=1.0), content, overlay=True, overlay_kind=kind
    )

    assert answer.overlay is not None
    drawn = Image.open(io.BytesIO(answer.overlay.file))
    assert (drawn.format or "").lower() == kind
    pixels = np.asarray(drawn.convert("RGB"), int)
    assert pixels[160, 160, 1] > 180, "a sure point is green"
    assert pixels[160, 480, 1] > 180
    assert pixels[160, 320].min() > 100, "a white line joins them"
    assert pixels[400, 320].max() < 30


def test_the_forms_of_an_answer_name_fields_that_are_there() -> None:
    for representation in TASK.representations:
        body = {**TASK.example(), **representation.fields}

        answer: Any = TASK.answer(runner(graph()), body)

        if representation.file:
            found: Any = answer
            for name in representation.file.split("."):
                found = getattr(found, name)
            kind = Image.open(io.BytesIO(found)).format
            assert f"image/{(kind or '').lower()}" == representation.media_type


def test_options_come_as_text_too() -> None:
    request: Any = TASK.parse({"image": synthetic_face(), "overlay": "true", "overlay_kind": "png"}, Limits())

    assert (request.overlay, request.overlay_kind) == (True, "png")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-20, 100), min_size=6, max_size=6), st.floats(-1e-3, 1e-3))
def test_a_point_that_moves_by_a_thousandth_changes_no_level_by_more_than_one(numbers: list[float], by: float) -> None:
    pixels = np.full((60, 80, 3), 90, np.uint8)
    points, colours = np.array(numbers).reshape(3, 2), np.full((3, 3), 250.0)
    links = list(itertools.combinations(range(3), 2))

    one, other = (draw_points(pixels, at, links, colours=colours) for at in (points, points + by))

    assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_an_overlay_that_is_rounded_otherwise_is_still_the_golden_one() -> None:
    one, other = (
        answered(SQUARE, says((20.0 + by, 20.0), (40.0, 31.0 - by)), synthetic_face(), overlay=True).plain()
        for by in (0.0, 1e-3)
    )

    assert same_image(one["overlay"]["file"], other["overlay"]["file"])


def test_the_drawn_face_is_small_and_the_examples_use_each_switch() -> None:
    examples = TASK.examples()

    assert len(base64.b64decode(examples[0]["image"])) < 10_000
    assert [example.get("overlay", False) for example in examples] == [False, True]
    assert json.loads(json.dumps(examples)) == examples


def test_placing_points_leaves_those_inside_alone() -> None:
    frame = Frame(100, 50, 0.5, 0.5, 0.0, 12.5)

    assert to_image_points(np.array([[25.0, 25.0], [60.0, 0.0]]), frame).tolist() == [[50.0, 25.0], [100.0, 0.0]]
