"""A text goes in by any door, of any length; whatever is wrong with it is said clearly."""

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
GLAD, SAD = "The film is great: lovely story!", "An awful, boring film."


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root: Path = tmp_path_factory.mktemp("texts")
    publish(root, "films", TASK, graph())
    with running(Settings(models=root)) as started:
        yield started


def test_a_text_is_answered_the_same_by_every_door(texts: Running) -> None:
    answers = [
        texts.client.post(URL, json={"text": GLAD}),
        texts.client.post(URL, content=GLAD, headers=PLAIN),
        texts.client.post(URL, content=GLAD, headers={"content-type": "text/plain; charset=utf-8"}),
        texts.client.post(URL, content=GLAD, headers={"content-type": "application/octet-stream"}),
        texts.client.post(URL, content=b"\xef\xbb\xbf" + GLAD.encode(), headers=PLAIN),
        texts.client.post(URL, files={"text": ("review.txt", GLAD, "text/plain")}),
    ]

    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["label"] == "positive"
    assert [word["word"] for word in answers[0].json()["words"]] == ["great", "lovely"]


def test_a_text_that_says_it_is_in_another_code_is_refused(texts: Running) -> None:
    latin = "Ein schöner Film, great".encode("latin-1")

    answer = texts.client.post(URL, content=latin, headers={"content-type": 'text/plain; charset="ISO-8859-1"'})

    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert answer.json()["error"]["message"] == "Unsupported charset ISO-8859-1; send the text in UTF-8."


def test_options_go_with_a_file(texts: Running) -> None:
    answer = texts.client.post(URL, content=GLAD, headers=PLAIN, params={"words": 1})

    assert len(answer.json()["words"]) == 1


def test_texts_of_all_lengths_at_once_are_answered_as_if_each_were_alone(texts: Running) -> None:
    run = runner(graph())
    bodies = [{"text": (GLAD + " " + SAD) * (i % 13) + (GLAD, SAD)[i % 2]} for i in range(60)]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: texts.client.post(URL, json=body).json(), bodies))

    expected = [TASK.answer(run, body).plain() for body in bodies]
    assert [answer["label"] for answer in answers] == [each["label"] for each in expected]
    assert [answer["parts"] for answer in answers] == [each["parts"] for each in expected]
    assert [answer["probability"] for answer in answers] == pytest.approx(
        [each["probability"] for each in expected], abs=1e-5
    )


def test_a_long_text_is_read_to_its_end_and_the_answer_says_how(texts: Running) -> None:
    text = "the film is so so. " * 20 + SAD

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
        (json.dumps({"text": GLAD, "words": -1}).encode(), JSON, 422, "invalid_request"),
        (json.dumps({"text": GLAD, "word": 1}).encode(), JSON, 422, "invalid_request"),
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
def test_what_cannot_be_answered_is_a_clear_error(
    texts: Running, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = texts.client.post(URL, content=content, headers=headers)

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"].endswith(".")
    assert len(answer.json()["error"]["message"]) < 300


@pytest.mark.parametrize("text", ["😀👍🏽 good", "סרט good נהדר", "g\0ood", "\x1b[31m good", "e\u0301 good", "good 😀"])
def test_texts_of_all_scripts_and_with_control_characters_are_answered(texts: Running, text: str) -> None:
    answer = texts.client.post(URL, json={"text": text}).json()

    (word,) = answer["words"]
    assert answer["label"] == "positive"
    assert word["word"] == "good"
    assert text[word["start"] : word["end"]].replace("\0", "") == "good"
    assert len(answer["notices"]) == ("\0" in text or "\x1b" in text)
