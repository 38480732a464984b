"""Predictions for images: ways to send them, unusual images, and errors for invalid ones."""

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


def test_all_ways_to_send_an_image_get_the_same_answer(server: Running) -> None:
    image = encode_image(red_image(), "JPEG")
    encoded64 = base64.b64encode(image).decode()
    answers = [
        server.client.post(URL, content=image, headers=JPEG),
        server.client.post(URL, content=image, headers={"content-type": "application/octet-stream"}),
        server.client.post(URL, files={"image": ("red.jpg", image, "image/jpeg")}),
        server.client.post(URL, json={"image": encoded64}),
        server.client.post(URL, json={"image": "data:image/jpeg;base64," + encoded64}),
        server.client.post("/v1/models/colours/versions/1/predict", content=image, headers=JPEG),
    ]

    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["label"] == "red"


def test_an_answer_names_its_model_and_the_time_of_each_stage(server: Running) -> None:
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
    ids=["query", "form"],
)
def test_options_can_be_sent_with_a_file(server: Running, options: dict[str, object]) -> None:
    answer = server.client.post(URL, **options)  # type: ignore[arg-type]

    assert len(answer.json()["labels"]) == 2


def test_a_heat_map_has_the_size_of_the_image_and_marks_the_object(server: Running) -> None:
    image = Image.new("RGB", (300, 100), "black")
    image.paste("red", (200, 0, 300, 100))

    answer = server.client.post(URL, content=encode_image(image), headers=JPEG, params={"heatmap": True})

    heatmap = Image.open(io.BytesIO(base64.b64decode(answer.json()["heatmap"]["png"])))
    assert heatmap.size == (300, 100)
    assert heatmap.getpixel((250, 50)) > 200
    assert heatmap.getpixel((50, 50)) < 50


@pytest.mark.parametrize(
    "image",
    [
        encode_image(red_image(), "WEBP"),
        encode_image(red_image(), "BMP"),
        encode_image(red_image(), "GIF"),
        encode_image(red_image(), "TIFF"),
        encode_image(red_image().convert("P")),
        encode_image(red_image().convert("CMYK"), "JPEG"),
        encode_image(red_image().convert("RGBA")),
        encode_image(red_image(), "JPEG", progressive=True),
        exif_rotated_jpeg(red_image()),
        encode_image(red_image(1, 1)),
        encode_image(red_image(2000, 10)),
        encode_image(red_image(3000, 2000), "JPEG"),
    ],
    ids=[
        "WebP",
        "BMP",
        "GIF",
        "TIFF",
        "palette",
        "CMYK",
        "alpha",
        "progressive",
        "EXIF-rotated",
        "1×1",
        "panorama",
        "6 megapixels",
    ],
)  # fmt: skip
def test_unusual_images_are_accepted(server: Running, image: bytes) -> None:
    answer = server.client.post(URL, content=image, headers=JPEG)

    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] == "red"


@pytest.mark.parametrize("image", [encode_image(red_image().convert("L")), sixteen_bit_png()], ids=["grey", "16-bit"])
def test_images_without_colour_are_accepted(server: Running, image: bytes) -> None:
    answer = server.client.post(URL, content=image, headers=JPEG)

    assert answer.status_code == 200
    assert answer.json()["probability"] == pytest.approx(1 / 3, abs=1e-3)


def png_with_invalid_exif() -> bytes:
    return encode_image(red_image(), "PNG", exif=b"Exif\0\0no TIFF at all")


def png_with_transparent_colour() -> bytes:
    """An RGB PNG that declares one colour transparent."""
    return encode_image(Image.new("RGB", (8, 8), (0, 0, 0)), "PNG", transparency=(0, 0, 0))


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("hat.jpg", "this is the name of a file and not its content; with curl, write -F 'image=@hat.jpg'."),
        ("@photos/hat.jpg", "with curl, write -F 'image=@photos/hat.jpg'."),
        ("https://example.org/hat.jpg?size=2", "URLs are not fetched; send the content of the file."),
        ("hat!", "not valid base64; send the file itself (with curl: -F image=@FILE), or"),
    ],
)
def test_a_name_or_address_in_place_of_an_image_is_recognised(server: Running, value: str, hint: str) -> None:
    ways = {"json": {"image": value}}, {"files": {"image": (None, value)}}
    for answer in [server.client.post(URL, **way) for way in ways]:  # type: ignore[arg-type]
        assert answer.status_code == 422
        assert hint in answer.json()["error"]["message"]


def test_invalid_exif_is_ignored(server: Running) -> None:
    answer = server.client.post(URL, content=png_with_invalid_exif(), headers=JPEG)

    assert answer.json()["label"] == "red"


def test_a_transparent_colour_becomes_white(server: Running) -> None:
    answer = server.client.post(URL, content=png_with_transparent_colour(), headers=JPEG)

    assert answer.json()["probability"] == pytest.approx(1 / 3, abs=1e-3)


def jpeg_with_many_scans(count: int) -> bytes:
    """A small JPEG that repeats its last scan; decoding each scan is a pass over all pixels."""
    content = encode_image(red_image(2000, 2000), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + content[-2:]


def png_without_palette() -> bytes:
    content = encode_image(red_image().convert("P"))
    start = content.index(b"PLTE") - 4
    length = int.from_bytes(content[start : start + 4], "big")
    return content[:start] + content[start + 12 + length :]


VALID_JPEG = encode_image(red_image(600, 400), "JPEG")


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", JPEG, 400, "empty_body"),
        (jpeg_with_many_scans(100), JPEG, 422, "unreadable_input"),
        (png_without_palette(), JPEG, 422, "unreadable_input"),
        (json.dumps(dict.fromkeys(map(str, range(50_000)))).encode(), JSON, 413, "input_too_large"),
        (json.dumps(dict.fromkeys(map(str, range(5_000)))).encode(), JSON, 422, "invalid_request"),
        (b'{"' + b"k" * 100_000 + b'": 1}', JSON, 422, "invalid_request"),
        (b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\nabc", FORM, 400, "malformed_body"),
        (b"This is not an image.", JPEG, 422, "unreadable_input"),
        (VALID_JPEG[: len(VALID_JPEG) // 2], JPEG, 422, "unreadable_input"),
        (encode_image(red_image(), "AVIF"), JPEG, 422, "unreadable_input"),
        (encode_image(Image.new("L", (9000, 6000))), JPEG, 413, "input_too_large"),
        (b"x" * 2_000_001, JPEG, 413, "body_too_large"),
        (VALID_JPEG, {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (VALID_JPEG, {"content-type": ""}, 415, "unsupported_media_type"),
        (VALID_JPEG, {"content-type": "application/json"}, 400, "malformed_body"),
        (b"[1]", {"content-type": "application/json"}, 400, "malformed_body"),
        (b'{"image": "not base64!"}', {"content-type": "application/json"}, 422, "invalid_request"),
        (b'{"image": ""}', {"content-type": "application/json"}, 422, "unreadable_input"),
        (b'{"picture": ""}', {"content-type": "application/json"}, 422, "invalid_request"),
        (b"{}", {"content-type": "application/json"}, 422, "invalid_request"),
        (b"[" * 200_000, {"content-type": "application/json"}, 413, "input_too_large"),
        (b"[" * 5_000, {"content-type": "application/json"}, 400, "malformed_body"),
        (b"no form", {"content-type": "multipart/form-data"}, 400, "malformed_body"),
        (b"no form", {"content-type": "multipart/form-data; boundary=x"}, 400, "malformed_body"),
        (VALID_JPEG, JPEG | {"x-request-timeout-ms": "soon"}, 400, "invalid_header"),
    ],
    ids=[
        "empty body", "JPEG with many scans", "PNG without palette", "50,000 fields", "5,000 fields",
        "long field name", "truncated form", "text", "truncated JPEG", "AVIF", "54 megapixels in a small file",
        "too many bytes", "wrong type",
        "no type", "JPEG sent as JSON", "JSON array", "invalid base64", "empty base64", "unknown field", "no field",
        "200,000 brackets", "deep nesting", "form without boundary", "not a form", "invalid timeout",
    ],
)  # fmt: skip
def test_invalid_requests_get_distinct_errors(
    server: Running, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = server.client.post(URL, content=content, headers=headers)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert 0 < len(error["message"]) < 500
    assert error["request_id"] == answer.headers["x-request-id"]
    assert server.client.post(URL, content=VALID_JPEG, headers=JPEG).status_code == 200


@pytest.mark.parametrize(
    "params", [{"top_k": "0"}, {"top_k": "many"}, {"top_k": ["1", "2"]}, {"topk": "3"}, {"heatmap": "perhaps"}]
)
def test_a_misspelt_or_invalid_option_is_rejected(server: Running, params: dict[str, str]) -> None:
    answer = server.client.post(URL, content=VALID_JPEG, headers=JPEG, params=params)

    assert answer.status_code == 422
    assert next(iter(params)) in answer.json()["error"]["message"]


def test_the_pixel_limit_can_be_set(start: Start) -> None:
    server = start(max_pixels=100)

    answer = server.client.post(URL, content=encode_image(red_image(11, 10)), headers=JPEG)

    assert answer.status_code == 413
    assert "11×10" in answer.json()["error"]["message"]
