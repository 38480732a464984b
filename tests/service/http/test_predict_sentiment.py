"""Predictions for texts: ways to send them, long and unusual texts, and errors for invalid ones."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    assert answer.json()["error"]["message"].endswith(".")
    assert len(answer.json()["error"]["message"]) < 300


@pytest.mark.parametrize("text", ["😀👍🏽 good", "סרט good נהדר", "g\0ood", "\x1b[31m good", "e\u0301 good", "good 😀"])
def test_any_script_and_control_characters_are_accepted(texts: Running, text: str) -> None:
    answer = texts.client.post(URL, json={"text": text}).json()

    (word,) = answer["words"]
    assert answer["label"] == "positive"
    assert word["word"] == "good"
    assert text[word["start"] : word["end"]].replace("\0", "") == "good"
    assert len(answer["notices"]) == ("\0" in text or "\x1b" in text or "נהדר" in text)
