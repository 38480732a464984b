"""Predictions for texts: ways to send them, long and unusual texts, and errors for invalid ones."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.model_folders import publish, runner
from tests.service.conftest import Running, running
from tests.tiny.sentiment import TASK, graph

URL = "/v1/models/films/predict"
PLAIN = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}
POSITIVE, NEGATIVE = "The film is great: lovely story!", "An awful, boring film."


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root: Path = tmp_path_factory.mktemp("texts")
    publish(root, "films", TASK, graph())
    with running(Settings(models=root)) as started:
        yield started


def test_all_ways_to_send_a_text_get_the_same_answer(texts: Running) -> None:
    answers = [
        texts.client.post(URL, json={"text": POSITIVE}),
        texts.client.post(URL, content=POSITIVE, headers=PLAIN),
        texts.client.post(URL, content=POSITIVE, headers={"content-type": "text/plain; charset=utf-8"}),
        texts.client.post(URL, content=POSITIVE, headers={"content-type": "application/octet-stream"}),
        texts.client.post(URL, content=b"\xef\xbb\xbf" + POSITIVE.encode(), headers=PLAIN),
        texts.client.post(URL, files={"text": ("review.txt", POSITIVE, "text/plain")}),
    ]

    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["label"] == "positive"
    assert [word["word"] for word in answers[0].json()["words"]] == ["great", "lovely"]


def test_a_text_in_another_encoding_is_rejected(texts: Running) -> None:
    latin = "Ein schöner Film, great".encode("latin-1")

    answer = texts.client.post(URL, content=latin, headers={"content-type": 'text/plain; charset="ISO-8859-1"'})

    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert answer.json()["error"]["message"] == "Unsupported charset ISO-8859-1; send the text in UTF-8."


@pytest.mark.parametrize("media_type", ["text/csv", "text/html", "text/markdown"])
def test_a_file_of_another_type_is_not_read_as_one_text(texts: Running, media_type: str) -> None:
    answer = texts.client.post(URL, content="text\nA good film\n", headers={"content-type": media_type})

    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("request_arguments", "name", "meant"),
    [
        ({"params": {"word": 1}, "content": POSITIVE, "headers": PLAIN}, "word", "words"),
        ({"params": {"timeout": 9}, "content": POSITIVE, "headers": PLAIN}, "timeout", "timeout_ms"),
        ({"data": {"wrods": "1"}, "files": {"text": POSITIVE}}, "wrods", "words"),
        ({"json": {"texts": [POSITIVE]}}, "texts", "text"),
    ],
    ids=["query", "request option", "form", "JSON"],
)
def test_a_mistyped_field_gets_a_suggestion(
    texts: Running, request_arguments: dict[str, Any], name: str, meant: str
) -> None:
    error = texts.client.post(URL, **request_arguments).json()["error"]

    assert error["message"].startswith(f"{name}: there is no such field. Did you mean '{meant}'?")
    assert (name, "unknown_field") in [(detail["where"], detail["reason"]) for detail in error["details"]]


def test_the_error_of_one_of_several_texts_says_which(texts: Running) -> None:
    first, second = texts.client.post(URL, json={"text": [POSITIVE, 7]}).json()["answers"]

    assert first["label"] == "positive"
    assert second["error"]["message"].startswith("text.1: ")
    assert [detail["where"] for detail in second["error"]["details"]] == ["text.1"]


def test_what_is_wrong_for_all_texts_of_a_list_is_an_error_of_the_request(texts: Running) -> None:
    answer = texts.client.post(URL, json={"text": [POSITIVE, NEGATIVE], "words": -1})

    assert (answer.status_code, answer.json()["error"]["details"][0]["where"]) == (422, "words")


def test_failed_texts_of_a_list_are_counted(texts: Running) -> None:
    def count() -> float:
        lines = texts.client.get("/metrics").text.splitlines()
        name = 'sevenfold_rejected_total{model="films",reason="unreadable_input"} '
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = count()

    assert texts.client.post(URL, json={"text": [" ", " ", POSITIVE]}).status_code == 200
    assert count() == before + 2


def test_options_can_be_sent_with_a_file(texts: Running) -> None:
    answer = texts.client.post(URL, content=POSITIVE, headers=PLAIN, params={"words": 1})

    assert len(answer.json()["words"]) == 1


def test_concurrent_texts_of_all_lengths_get_the_same_answers_as_alone(texts: Running) -> None:
    run = runner(graph())
    bodies = [{"text": (POSITIVE + " " + NEGATIVE) * (i % 13) + (POSITIVE, NEGATIVE)[i % 2]} for i in range(60)]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: texts.client.post(URL, json=body).json(), bodies))

    expected = [TASK.answer(run, body).plain() for body in bodies]
    assert [answer["label"] for answer in answers] == [item["label"] for item in expected]
    assert [answer["parts"] for answer in answers] == [item["parts"] for item in expected]
    assert [answer["probability"] for answer in answers] == pytest.approx(
        [item["probability"] for item in expected], abs=1e-5
    )


def test_a_long_text_is_read_in_parts_to_its_end(texts: Running) -> None:
    text = "the film is so so. " * 20 + NEGATIVE

    answer = texts.client.post(URL, json={"text": text}).json()

    assert answer["label"] == "negative"
    assert answer["parts"] > 1
    assert "was read in" in answer["notices"][0]
    assert max(word["end"] for word in answer["words"]) > 19 * 20


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"", PLAIN, 400, "empty_body"),
        (b" \n\t", PLAIN, 422, "unreadable_input"),
        (b"\0\0\0", PLAIN, 422, "unreadable_input"),
        (json.dumps({"text": ""}).encode(), JSON, 422, "unreadable_input"),
        (b"{}", JSON, 422, "invalid_request"),
        (json.dumps({"text": 3}).encode(), JSON, 422, "invalid_request"),
        (json.dumps({"text": POSITIVE, "words": -1}).encode(), JSON, 422, "invalid_request"),
        (json.dumps({"text": POSITIVE, "word": 1}).encode(), JSON, 422, "invalid_request"),
        (b'{"text": "\\ud800"}', JSON, 400, "malformed_body"),
        (b'{"text": "\xff"}', JSON, 400, "malformed_body"),
        ("café".encode("latin-1"), PLAIN, 422, "invalid_request"),
        ("good".encode("utf-16"), PLAIN, 422, "invalid_request"),
        (b"a good film " * 90_000, PLAIN, 413, "input_too_large"),
        (json.dumps({"text": "good" * 250_000}).encode(), JSON, 413, "input_too_large"),
        ("ﷺ".encode() * 33_333, PLAIN, 413, "input_too_large"),
        ("😀 👍".encode() * 9_000, PLAIN, 413, "input_too_large"),
        (b"<p>good</p>", {"content-type": "image/png"}, 415, "unsupported_media_type"),
    ],
)
def test_an_invalid_text_is_rejected_with_a_message(
    texts: Running, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = texts.client.post(URL, content=content, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"].endswith((".", "?"))
    assert len(answer.json()["error"]["message"]) < 300


@pytest.mark.parametrize("text", ["😀👍🏽 good", "סרט good נהדר", "g\0ood", "\x1b[31m good", "e\u0301 good", "good 😀"])
def test_any_script_and_control_characters_are_accepted(texts: Running, text: str) -> None:
    answer = texts.client.post(URL, json={"text": text}).json()

    (word,) = answer["words"]
    assert answer["label"] == "positive"
    assert word["word"] == "good"
    assert text[word["start"] : word["end"]].replace("\0", "") == "good"
    assert len(answer["notices"]) == ("\0" in text or "\x1b" in text or "נהדר" in text)
