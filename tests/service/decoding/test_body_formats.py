"""Bodies become fields: JSON, multipart forms and gzip, valid and invalid."""

import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.body_formats import parse_compressed, parse_form, parse_json, parse_upload
from service.errors import BodyTooLarge, InvalidRequest, MalformedBody, ServiceError, TooLarge, UnsupportedMediaType
from tasks._images import IMAGE_UPLOAD
from tasks.contract import Upload


def part(disposition: str, content: bytes, *headers: str) -> bytes:
    lines = [f"Content-Disposition: form-data{disposition}", *headers]
    return b"--B\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes, end: bytes = b"--B--\r\n") -> Any:
    return parse_form(b"".join(parts) + end, boundary=b"B", upload=IMAGE_UPLOAD, query={})


JPEG = "Content-Type: image/jpeg"


def test_json_fields_are_merged_with_the_query() -> None:
    assert parse_json(b'{"a": 1}', query={"b": "2"}, max_values=10) == {"a": 1, "b": "2"}


def test_a_byte_order_mark_before_json_is_skipped() -> None:
    assert parse_json(b"\xef\xbb\xbf{}", query={}, max_values=10) == {}


def test_json_with_too_many_values_is_refused_unparsed() -> None:
    body = b'{"rows": [' + b",".join([b"[]"] * 1_000) + b"]}"

    with pytest.raises(TooLarge, match="more than 1,000 JSON values"):
        parse_json(body, query={}, max_values=1_000)
    assert len(parse_json(body, query={}, max_values=3_000)["rows"]) == 1_000


@pytest.mark.parametrize("body", [b"[1]", b"1", b"null", b'"a"', b"{", b"\xff", b"{}x", b"9" * 5_000])
def test_a_body_that_is_no_json_object_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        parse_json(body, query={}, max_values=10_000)


def test_a_field_in_both_body_and_query_is_invalid() -> None:
    with pytest.raises(InvalidRequest, match="a: given in both"):
        parse_json(b'{"a": 1}', query={"a": "2"}, max_values=10)
    with pytest.raises(InvalidRequest, match="image: given in both"):
        parse_upload(b"x", name="image", query={"image": "2"})


@pytest.mark.parametrize(
    "image",
    [
        part('; name="image"; filename="a.jpg"', b"\xff\xd8", JPEG),
        part("; name=\"image\"; filename*=utf-8''gr%C3%BCn.jpg", b"\xff\xd8", JPEG),
        part('; name="image"', b"\xff\xd8", JPEG),
        part('; name="image"', b"\xff\xd8"),
        part('; filename="a"; name=image', b"\xff\xd8"),
    ],
    ids=["file", "extended name", "type only", "neither", "other order"],
)
def test_the_upload_field_holds_the_bytes_of_the_file(image: bytes) -> None:
    assert form(image, part('; name="top_k"', b"3")) == {"image": b"\xff\xd8", "top_k": "3"}


def test_an_upload_field_of_plain_text_is_text() -> None:
    assert form(part('; name="image"', b"/9j/4AA=")) == {"image": "/9j/4AA="}


def test_only_one_file_is_accepted_where_a_list_has_no_meaning() -> None:
    table = Upload("rows", ("text/csv",), several=False, has_signature=True)
    body = part('; name="rows"; filename="a.csv"', b"a\n1") * 2 + b"--B--\r\n"

    with pytest.raises(InvalidRequest, match="rows: 2 were sent in one form; send one per request"):
        parse_form(body, boundary=b"B", upload=table, query={})


def text_form(media_type: str) -> Any:
    file = part('; name="text"; filename="a"', b"a,b", f"Content-Type: {media_type}; charset=utf-8")
    return parse_form(file + b"--B--\r\n", boundary=b"B", upload=Upload("text", ("text/plain",)), query={})


def test_a_file_of_another_type_is_not_read_as_a_text() -> None:
    assert text_form("text/plain") == text_form("application/octet-stream") == {"text": b"a,b"}
    with pytest.raises(UnsupportedMediaType, match="'text/csv'; this model accepts text/plain"):
        text_form("text/csv")


def test_json_that_is_compressed_without_saying_so_is_told_how_to_send_it() -> None:
    with pytest.raises(MalformedBody, match=r"compressed by gzip; .*'Content-Encoding: gzip'"):
        parse_json(gzip.compress(b"{}"), query={}, max_values=100)


def test_a_repeated_upload_field_is_a_list_in_order() -> None:
    fields = form(*(part('; name="image"; filename="f"', content) for content in (b"\xff1", b"\xff2")))

    assert fields == {"image": [b"\xff1", b"\xff2"]}


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([part('; name="k"', b"1"), part('; name="k"', b"2")], InvalidRequest, "k: given more than once"),
        ([part('; name="photo"; filename="a"', b"1", JPEG)], InvalidRequest, "send it in field 'image'"),
        ([part('; name="k"', b"\xe9")], InvalidRequest, "k: the text is not UTF-8"),
        ([part("", b"1")], MalformedBody, "has no name"),
        ([part('; name="k"', b"1")] * 300, MalformedBody, "more than 200 parts"),
        ([b"no form"], MalformedBody, "not a valid multipart form"),
    ],
    ids=["repeated", "file elsewhere", "not UTF-8", "no name", "many parts", "no form"],
)
def test_invalid_forms_say_what_is_wrong(parts: list[bytes], error: type[ServiceError], message: str) -> None:
    with pytest.raises(error, match=message):
        form(*parts)


def test_a_truncated_form_is_malformed() -> None:
    with pytest.raises(MalformedBody, match="truncated"):
        form(part('; name="image"', b"abc"), end=b"")


@given(st.binary(max_size=300))
def test_any_form_is_parsed_or_refused(content: bytes) -> None:
    try:
        fields = parse_form(b"--B\r\n" + content, boundary=b"B", upload=IMAGE_UPLOAD, query={})
    except ServiceError:
        return
    assert all(isinstance(name, str) for name in fields)


def compressed(body: bytes, max_bytes: int = 1_000) -> Any:
    return parse_compressed(body, parse=json.loads, max_bytes=max_bytes)


def test_a_gzip_body_is_decompressed() -> None:
    assert compressed(gzip.compress(b'{"a": 1}')) == {"a": 1}


def test_a_gzip_body_is_decompressed_only_up_to_the_limit() -> None:
    with pytest.raises(BodyTooLarge):
        compressed(gzip.compress(b" " * 10_000_000))


@pytest.mark.parametrize(
    "body",
    [b"{}", b"", gzip.compress(b"{}" * 50)[:-9], gzip.compress(b"{}") + b"x"],
    ids=["not gzip", "empty", "truncated", "trailing data"],
)
def test_a_broken_gzip_body_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        compressed(body)
