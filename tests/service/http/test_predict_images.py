"""A picture goes in by any door; whatever is wrong with it is said clearly and costs nobody else anything."""

import base64
import io
import json

import pytest
from PIL import Image

from tests.images import encode_image, exif_rotated_jpeg, red_image, sixteen_bit_png
from tests.service.conftest import Running, Start

URL = "/v1/models/colours/predict"
JPEG = {"content-type": "image/jpeg"}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}


def test_a_picture_is_answered_the_same_by_every_door(server: Running) -> None:
    picture = encode_image(red_image(), "JPEG")
    encoded64 = base64.b64encode(picture).decode()
    answers = [
        server.client.post(URL, content=picture, headers=JPEG),
        server.client.post(URL, content=picture, headers={"content-type": "application/octet-stream"}),
        server.client.post(URL, files={"image": ("red.jpg", picture, "image/jpeg")}),
        server.client.post(URL, json={"image": encoded64}),
        server.client.post(URL, json={"image": "data:image/jpeg;base64," + encoded64}),
        server.client.post("/v1/models/colours/versions/1/predict", content=picture, headers=JPEG),
    ]

    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["label"] == "red"


def test_an_answer_says_which_model_gave_it_and_where_its_time_went(server: Running) -> None:
    answer = server.client.post(URL, content=encode_image(red_image()), headers=JPEG | {"x-request-id": "mine-1"})

    assert answer.json()["model"] == "colours"
    assert answer.json()["version"] == "1"
    assert answer.headers["x-model"] == "colours/1"
    assert answer.headers["x-request-id"] == "mine-1"
    stages = [entry.partition(";")[0] for entry in answer.headers["server-timing"].split(", ")]
    assert stages == ["receive", "decode", "queue", "infer", "postprocess", "total", "batch"]


@pytest.mark.parametrize(
    "options",
    [
        {"params": {"top_k": 2}, "content": encode_image(red_image()), "headers": JPEG},
        {"data": {"top_k": "2"}, "files": {"image": encode_image(red_image())}},
    ],
    ids=["in the address of a raw body", "in a form"],
)
def test_options_go_with_a_file(server: Running, options: dict[str, object]) -> None:
    answer = server.client.post(URL, **options)  # type: ignore[arg-type]

    assert len(answer.json()["labels"]) == 2


def test_a_heat_map_has_the_proportions_of_the_picture_and_shows_the_place(server: Running) -> None:
    picture = Image.new("RGB", (300, 100), "black")
    picture.paste("red", (200, 0, 300, 100))

    answer = server.client.post(URL, content=encode_image(picture), headers=JPEG, params={"heatmap": True})

    heatmap = Image.open(io.BytesIO(base64.b64decode(answer.json()["heatmap"]["png"])))
    assert heatmap.size == (300, 100)
    assert heatmap.getpixel((250, 50)) > 200
    assert heatmap.getpixel((50, 50)) < 50


@pytest.mark.parametrize(
    "picture",
    [
        encode_image(red_image(), "WEBP"),
        encode_image(red_image(), "BMP"),
        encode_image(red_image().convert("P")),
        encode_image(red_image().convert("CMYK"), "JPEG"),
        encode_image(red_image().convert("RGBA")),
        encode_image(red_image(), "JPEG", progressive=True),
        exif_rotated_jpeg(red_image()),
        encode_image(red_image(1, 1)),
        encode_image(red_image(2000, 10)),
        encode_image(red_image(3000, 2000), "JPEG"),
    ],
    ids=["WebP", "BMP", "palette", "CMYK", "alpha", "progressive", "EXIF-rotated", "1×1", "panorama", "6 megapixels"],
)
def test_unusual_pictures_are_right_input(server: Running, picture: bytes) -> None:
    answer = server.client.post(URL, content=picture, headers=JPEG)

    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] == "red"


@pytest.mark.parametrize("picture", [encode_image(red_image().convert("L")), sixteen_bit_png()], ids=["grey", "16-bit"])
def test_pictures_without_colour_are_right_input(server: Running, picture: bytes) -> None:
    answer = server.client.post(URL, content=picture, headers=JPEG)

    assert answer.status_code == 200
    assert answer.json()["probability"] == pytest.approx(1 / 3, abs=1e-3)


def with_exif_that_cannot_be_read() -> bytes:
    return encode_image(red_image(), "PNG", exif=b"Exif\0\0no TIFF at all")


def transparent_by_colour() -> bytes:
    """An RGB PNG in which one colour is transparent."""
    return encode_image(Image.new("RGB", (8, 8), (0, 0, 0)), "PNG", transparency=(0, 0, 0))


def test_exif_that_cannot_be_read_costs_nothing(server: Running) -> None:
    answer = server.client.post(URL, content=with_exif_that_cannot_be_read(), headers=JPEG)

    assert answer.json()["label"] == "red"


def test_a_colour_that_is_transparent_counts_as_white(server: Running) -> None:
    answer = server.client.post(URL, content=transparent_by_colour(), headers=JPEG)

    assert answer.json()["probability"] == pytest.approx(1 / 3, abs=1e-3)


def with_many_scans(count: int) -> bytes:
    """A small JPEG whose last scan stands there again and again: each costs a pass over all pixels."""
    whole = encode_image(red_image(2000, 2000), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * count + whole[-2:]


def palette_without_colours() -> bytes:
    whole = encode_image(red_image().convert("P"))
    start = whole.index(b"PLTE") - 4
    length = int.from_bytes(whole[start : start + 4], "big")
    return whole[:start] + whole[start + 12 + length :]


WHOLE = encode_image(red_image(600, 400), "JPEG")


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", JPEG, 400, "empty_body"),
        (with_many_scans(100), JPEG, 422, "unreadable_input"),
        (palette_without_colours(), JPEG, 422, "unreadable_input"),
        (json.dumps(dict.fromkeys(map(str, range(50_000)))).encode(), JSON, 422, "invalid_request"),
        (b'{"' + b"k" * 100_000 + b'": 1}', JSON, 422, "invalid_request"),
        (b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\nabc", FORM, 400, "malformed_body"),
        (b"This is no picture at all.", JPEG, 422, "unreadable_input"),
        (WHOLE[: len(WHOLE) // 2], JPEG, 422, "unreadable_input"),
        (encode_image(red_image(), "GIF"), JPEG, 422, "unreadable_input"),
        (encode_image(Image.new("L", (6000, 5000))), JPEG, 413, "input_too_large"),
        (b"x" * 2_000_001, JPEG, 413, "body_too_large"),
        (WHOLE, {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (WHOLE, {"content-type": ""}, 415, "unsupported_media_type"),
        (WHOLE, {"content-type": "application/json"}, 400, "malformed_body"),
        (b"[1]", {"content-type": "application/json"}, 400, "malformed_body"),
        (b'{"image": "not base64!"}', {"content-type": "application/json"}, 422, "invalid_request"),
        (b'{"image": ""}', {"content-type": "application/json"}, 422, "unreadable_input"),
        (b'{"picture": ""}', {"content-type": "application/json"}, 422, "invalid_request"),
        (b"{}", {"content-type": "application/json"}, 422, "invalid_request"),
        (b"[" * 200_000, {"content-type": "application/json"}, 400, "malformed_body"),
        (b"no form", {"content-type": "multipart/form-data"}, 400, "malformed_body"),
        (b"no form", {"content-type": "multipart/form-data; boundary=x"}, 400, "malformed_body"),
        (WHOLE, JPEG | {"x-request-timeout-ms": "soon"}, 400, "invalid_header"),
    ],
    ids=[
        "nothing", "a JPEG of many scans", "a palette without colours", "fifty thousand fields",
        "a long name", "half a form", "text", "half a JPEG", "GIF", "30 megapixels in a small file",
        "too many bytes", "wrong type",
        "no type", "a JPEG called JSON", "a JSON list", "bad base64", "empty base64", "unknown field", "no field",
        "deep nesting", "a form without boundary", "a form that is none", "a time-out that is no number",
    ],
)  # fmt: skip
def test_wrong_input_is_told_apart(
    server: Running, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = server.client.post(URL, content=content, headers=headers)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert 0 < len(error["message"]) < 500
    assert error["request_id"] == answer.headers["x-request-id"]
    assert server.client.post(URL, content=WHOLE, headers=JPEG).status_code == 200


@pytest.mark.parametrize(
    "params", [{"top_k": "0"}, {"top_k": "many"}, {"top_k": ["1", "2"]}, {"topk": "3"}, {"heatmap": "perhaps"}]
)
def test_an_option_that_is_misspelt_or_out_of_range_is_refused(server: Running, params: dict[str, str]) -> None:
    answer = server.client.post(URL, content=WHOLE, headers=JPEG, params=params)

    assert answer.status_code == 422
    assert next(iter(params)) in answer.json()["error"]["message"]


def test_the_pixel_limit_is_a_setting(start: Start) -> None:
    server = start(max_pixels=100)

    answer = server.client.post(URL, content=encode_image(red_image(11, 10)), headers=JPEG)

    assert answer.status_code == 413
    assert "11×10" in answer.json()["error"]["message"]
