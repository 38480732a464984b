from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.fetching.download import Downloader
from service.fetching.errors import CannotFetch
from service.fetching.sources import Credentials, Source, parse_source, sign

KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
}


def test_a_request_is_signed_as_in_the_example_of_amazon_s3s_reference():
    credentials = Credentials(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"])
    address, now = "https://examplebucket.s3.amazonaws.com/test.txt", datetime(2013, 5, 24, tzinfo=UTC)

    headers = sign(address, {"Range": "bytes=0-9"}, credentials, "us-east-1", now)

    assert headers["Authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


@pytest.mark.parametrize(
    ("text", "environment", "address"),
    [
        ("https://host/store/", {}, "https://host/store/credit/1/model.onnx"),
        ("http://host:8080", {}, "http://host:8080/credit/1/model.onnx"),
        ("https://host/store?token=a", {}, "https://host/store/credit/1/model.onnx?token=a"),
        ("s3://bucket", {}, "https://s3.us-east-1.amazonaws.com/bucket/credit/1/model.onnx"),
        (
            "s3://bucket/a b/",
            {"AWS_REGION": "eu-central-1"},
            "https://s3.eu-central-1.amazonaws.com/bucket/a%20b/credit/1/model.onnx",
        ),
        ("s3://bucket/a", {"AWS_ENDPOINT_URL": "http://minio:9000/"}, "http://minio:9000/bucket/a/credit/1/model.onnx"),
    ],
)
def test_a_file_has_an_address(text, environment, address):
    assert parse_source(text, environment).address("credit/1/model.onnx") == address


@pytest.mark.parametrize("text", ["ftp://host/a", "file:///etc", "models", "s3://", "https://", ""])
def test_other_addresses_are_refused_with_those_that_work(text):
    with pytest.raises(CannotFetch, match="--from must begin with"):
        parse_source(text, {})


def test_a_password_in_the_address_is_refused_without_being_repeated():
    with pytest.raises(CannotFetch) as raised:
        parse_source("https://user:secret@host/a", {})

    assert "secret" not in str(raised.value)
    assert "--token-file" in str(raised.value)


def test_half_of_the_credentials_is_an_error():
    with pytest.raises(CannotFetch, match="Set both"):
        parse_source("s3://bucket", {"AWS_ACCESS_KEY_ID": "a"})


def test_secrets_are_not_part_of_what_is_printed():
    source = parse_source("s3://bucket", KEYS | {"AWS_SESSION_TOKEN": "very-secret"})

    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in repr(source)
    assert "very-secret" not in repr(source)
    assert "token" not in Source("https://host", "token=a").printable("credit/1/model.onnx")


def test_a_version_comes_from_a_bucket_with_signed_requests(server, published, tmp_path: Path):
    source = parse_source("s3://store", KEYS | {"AWS_ENDPOINT_URL": server.address, "AWS_SESSION_TOKEN": "session"})
    server.cut_after["/store/credit/1/model.onnx"] = [10]

    Downloader(source, tmp_path / "models", log=lambda text: None, sleep=lambda s: None).fetch("credit", "1")

    resumed = [headers for _, headers in server.requests if "range" in headers]
    assert all(headers["authorization"].startswith("AWS4-HMAC-SHA256 ") for _, headers in server.requests)
    assert all(headers["x-amz-security-token"] == "session" for _, headers in server.requests)
    assert "SignedHeaders=accept-encoding;host;range;" in resumed[0]["authorization"]


def test_a_token_is_sent_to_a_web_server(server, published, tmp_path: Path):
    source = parse_source(f"{server.address}/store", {}, token="abc")  # noqa: S106

    Downloader(source, tmp_path / "models").fetch("credit", "1")

    assert {headers["authorization"] for _, headers in server.requests} == {"Bearer abc"}
