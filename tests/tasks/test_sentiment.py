"""Sentiment: tokenizing any text, and mapping evidence back to words of the request."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks._characters import clean_text
from tasks.contract import InvalidInput, InvalidOutput, Limits, build_task, parameters_of
from tasks.sentiment import Sentiment, SentimentAnswer, find_words, interpolate_temperatures, split_tokens
from tests.hostile_texts import HOSTILE_TEXTS
from tests.model_folders import runner
from tests.tiny.sentiment import GLAD, SAD, TASK, graph

RUN = runner(graph())
TEXTS = st.lists(
    st.sampled_from(
        [*GLAD, *SAD, " the", " isn't", "", "!", "\n", "\0", "\x1b", "é", "e\u0301", "😀", "ש", "ﷺ", "<br />"]
    )
    | st.text(max_size=6),
    max_size=60,
).map("".join)


def predict(text: str | bytes, task: Sentiment = TASK, **more: Any) -> SentimentAnswer:
    answer = task.answer(RUN, {"text": text, **more})
    assert isinstance(answer, SentimentAnswer)
    return answer


def test_deciding_words_are_returned_with_their_positions() -> None:
    text = "This awful, awful film has one good scene."

    answer = predict(text)

    assert (answer.label, answer.tokens > 8, answer.parts, answer.notices) == ("negative", True, 1, [])
    assert answer.probability == answer.probabilities["negative"] > 0.5
    assert [(word.word, text[word.start : word.end]) for word in answer.words] == [
        ("awful", "awful"),
        ("awful", "awful"),
        ("good", "good"),
    ]
    assert [word.weight > 0 for word in answer.words] == [True, True, False]


def test_number_of_words_is_limited_as_requested() -> None:
    text = "good great lovely bad"

    assert [len(predict(text, words=words).words) for words in (0, 2, 50)] == [0, 2, 4]


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_positions_refer_to_the_text_of_the_request(text: str) -> None:
    try:
        answer = predict(text, words=50)
    except (InvalidInput, ValidationError):
        return

    assert all(word.word == clean_text(text[word.start : word.end]).text and word.word for word in answer.words)
    assert [abs(word.weight) for word in answer.words] == sorted((abs(w.weight) for w in answer.words), reverse=True)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_longer_padding_does_not_change_the_answer(text: str) -> None:
    wide = replace(TASK, buckets=(8, 16, 32, 4096))
    if not clean_text(text).text.strip() or len(TASK.preprocess(text)) > 1:
        return
    samples = TASK.preprocess(text)
    larger = replace(samples, arrays={"tokens": np.pad(samples.arrays["tokens"], [(0, 0), (0, 40)])})
    request = wide.parse({"text": text, "words": 50}, Limits())

    padded, unpadded = (wide.postprocess(RUN(s.arrays), s, request) for s in (larger, samples))

    assert padded.words == unpadded.words
    assert padded.probability == pytest.approx(unpadded.probability, abs=2e-6)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_evidence_sums_to_the_scores(text: str) -> None:
    samples = TASK.preprocess(text)

    outputs = RUN(samples.arrays)
    scores = outputs["evidence"].sum(axis=1)

    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(expected, outputs["probabilities"], atol=1e-5)
    assert all(len(row) in TASK.buckets for row in samples.arrays["tokens"])


@given(st.integers(0, 3000), st.integers(2, 100))
def test_parts_of_a_text_are_complete_and_fit(length: int, max_length: int) -> None:
    tokens = np.arange(1, length + 2)

    parts = split_tokens(tokens, max_length)

    assert max(map(len, parts)) <= max_length
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert {int(part[0]) for part in parts} == {1}
    assert np.concatenate([part[1:] for part in parts]).tolist() == tokens[1:].tolist()


def test_long_text_is_read_in_parts_to_its_end() -> None:
    text = "The film is good. " * 10 + "It is awful, " * 30 + "and boring"

    answer = predict(text, words=50)

    assert answer.parts > 1
    assert answer.label == "negative"
    assert answer.tokens > 32
    assert str(answer.parts) in answer.notices[0]
    assert "average" in answer.notices[0]
    assert max(word.end for word in answer.words) == len(text)


def test_parts_are_weighted_by_length() -> None:
    text = ("good " * 31 + "bad " * 31).strip()
    samples = TASK.preprocess(text)

    answer = predict(text)

    assert samples.context.counts == (31, 31)
    assert answer.probability == pytest.approx(RUN(samples.arrays)["probabilities"].mean(axis=0).max(), abs=1e-6)
    assert predict("good " * 100 + "bad " * 20).label == "positive"


@pytest.mark.parametrize(
    "text", ["", "   ", "\n\t\r\n", "\u3000\xa0", "\0\0", "\0 \x1b\n", "\u200b\ufe0f", b"", b"\xef\xbb\xbf"]
)
def test_empty_text_is_rejected(text: str | bytes) -> None:
    with pytest.raises(InvalidInput, match=r"^The text .*\.$") as caught:
        predict(text)

    assert caught.value.reason == "empty"


def test_control_characters_are_removed_and_counted() -> None:
    text = "\0It's g\0r\x1beat\x7f\ufeff!"

    answer = predict(text)

    assert answer.notices == ["4 control characters were left out."]
    assert [(word.word, text[word.start : word.end]) for word in answer.words] == [("great", "g\0r\x1beat")]
    assert predict("\0good").notices == ["One control character was left out."]
    assert predict("good\tand\r\n\x85bad").notices == []


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a g\u200breat, lo\xadvely film", "a great, lovely film"),
        ("it isn\u2019t a good film", "it isn't a good film"),
        ("\ufeffa\xa0good\u2009film\r\n", "a good film\n"),
        ("a \u201cgood\u201d film", 'a "good" film'),
    ],
)
def test_characters_that_nobody_sees_never_change_the_answer(text: str, same: str) -> None:
    answer, expected = predict(text), predict(same)

    assert (answer.probability, answer.tokens, answer.notices) == (expected.probability, expected.tokens, [])
    assert [(word.word, word.weight) for word in answer.words] == [(word.word, word.weight) for word in expected.words]
    assert all(clean_text(text[word.start : word.end]).text == word.word for word in answer.words)


def test_marks_beyond_the_limit_are_left_out_with_a_notice() -> None:
    assert predict("good" + "\u0316\u0301" * 500).notices == [
        "970 combining marks were left out, since a letter has at most 30."
    ]


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_hostile_text_is_answered_or_rejected(name: str) -> None:
    """The work is bounded: a text that took quadratic time would not return within the test's time limit."""
    try:
        tokens = predict(HOSTILE_TEXTS[name]()).tokens
    except InvalidInput:
        tokens = 0

    assert tokens <= 50 * TASK.buckets[-1]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Ein wunderbarer Film, ich habe jede Minute genossen.", "this language"),
        ("fghjkl fdghj vbnm ertyu dfgh", "this language"),
        ("Прекрасный фильм", "this script"),
        ("很好", "this script"),
        ("😀👍😀", "such emoji"),
    ],
)
def test_text_in_another_language_or_script_gets_a_notice(text: str, what: str) -> None:
    trained_on_english = replace(TASK, word_pieces=(0.9, 0.07, 0.03), buckets=(64,))

    assert predict(text, trained_on_english).notices == [
        f"The model has probably not seen {what} in training, so its answer may mean nothing for this text."
    ]
    assert predict("the film is good and the story is great 😀👍🏽😀👍🏽", trained_on_english).notices == []


def test_text_without_words_gets_a_notice() -> None:
    assert predict("?! ...").notices == ["The text contains no words."]


def test_short_texts_are_answered_less_confidently_than_long_ones() -> None:
    tempered = replace(TASK, short_text_temperatures=((1, 4.0), (3, 2.0)))
    texts = ("good", "a good film", "a good film and a good story")

    before, after = ([predict(text, task) for text in texts] for task in (TASK, tempered))

    assert [answer.label for answer in after] == ["positive"] * 3
    assert [math.log(a.probability / (1 - a.probability)) for a in after] == pytest.approx(
        [math.log(b.probability / (1 - b.probability)) / t for b, t in zip(before, (4, 2, 1), strict=True)], abs=0.01
    )
    assert after[0].words[0].weight == pytest.approx(before[0].words[0].weight / 4, abs=1e-4)


@st.composite
def temperatures(draw: st.DrawFn) -> tuple[tuple[int, float], ...]:
    lengths = sorted(draw(st.sets(st.integers(1, 200), min_size=1, max_size=6)))
    return tuple((length, draw(st.floats(1, 20))) for length in lengths)


@given(temperatures())
def test_one_more_token_changes_the_temperature_only_by_its_share_of_the_way_to_the_next_one(
    points: tuple[tuple[int, float], ...],
) -> None:
    counts = np.arange(1, 1001)
    lengths, values = zip(*points, strict=True)
    found = interpolate_temperatures(points, counts)
    steepest = max(
        abs(b - a) / math.log(n / m) for (m, a), (n, b) in itertools.pairwise([*points, (2 * lengths[-1], 1.0)])
    )

    assert found[np.array(lengths) - 1] == pytest.approx(values)
    assert (found >= 1).all()
    assert (found[counts >= 2 * lengths[-1]] == 1).all()
    assert (np.abs(np.diff(found)) <= steepest * np.diff(np.log(counts)) + 1e-9).all()


def test_model_without_temperatures_answers_texts_of_18_tokens_as_when_it_was_published() -> None:
    without_field = Sentiment(TASK.labels, TASK.tokenizer)

    assert [without_field.temperature(tokens) for tokens in (18, 22, 1000)] == [1, 1, 1]
    assert without_field.temperature(16) > 2


@pytest.mark.parametrize(
    "points", [((4, 2.0), (2, 3.0)), ((0, 2.0),), ((2, 2.0), (2, 1.5)), ((2, 0.5),), ((2, math.nan),)]
)
def test_temperatures_that_are_not_ascending_lengths_or_are_below_1_are_refused(
    points: tuple[tuple[int, float], ...],
) -> None:
    with pytest.raises(ValueError, match="temperatures"):
        replace(TASK, short_text_temperatures=points)


def test_every_comma_of_a_text_may_be_sent_as_json() -> None:
    limits = Limits(characters=200)
    body = json.dumps({"text": "," * 199 + "a", "words": 3})

    assert sum(map(body.count, ",[{")) <= TASK.max_json_values(limits)


ODD_TEXTS = [
    "😀😀 👍🏽",
    "👩\u200d❤️\u200d👩",
    "סרט נפלא",
    "فيلم رائع",
    "नमस्ते",
    "very 𝔤𝔬𝔬𝔡",
    "e\u0301",
    "\u0301\u0301",
    "?!",
    "'",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_script_is_answered(text: str) -> None:
    answer = predict(text)

    assert answer.tokens > 0
    assert answer.probabilities.keys() == {"negative", "positive"}


def test_compatibility_characters_are_normalised() -> None:
    text = "a 𝔤𝔬𝔬𝔡 film"

    (word,) = predict(text).words

    assert (word.word, word.start, word.end) == ("𝔤𝔬𝔬𝔡", 2, 6)


def test_surrogates_are_removed() -> None:
    answer = predict("good \ud800\udc00 film")

    assert answer.notices == ["2 control characters were left out."]
    assert [word.word for word in answer.words] == ["good"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't stop: 'quoted', O’Neil's", ["don't", "stop", "quoted", "O’Neil's"]),
        ("snake_case 10/10 3D", ["snake", "case", "10", "10", "3D"]),
        ("e\u0301tude, ne\u0301e", ["e\u0301tude", "ne\u0301e"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("great😀👍🏽!! ❤️", ["great", "😀👍🏽", "❤️"]),
        ("", []),
        (" -- \n", []),
    ],
)
def test_words_are_runs_of_letters_digits_and_apostrophes_or_emoji(text: str, words: list[str]) -> None:
    assert words == [text[start:end] for start, end in find_words(text)]


@given(st.text())
def test_words_do_not_overlap(text: str) -> None:
    positions = [position for word in find_words(text) for position in word]

    assert positions == sorted(positions)
    assert all(0 <= position <= len(text) for position in positions)
    assert all(start < end for start, end in find_words(text))


@pytest.mark.parametrize("text", ["a " * 50_001, "ﷺ" * 10_000], ids=["as sent", "after NFKC"])
def test_too_many_characters_are_rejected(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"characters; at most 100,000 are accepted\.") as caught:
        predict(text)

    assert caught.value.reason == "too_large"


def test_too_many_tokens_are_rejected() -> None:
    with pytest.raises(InvalidInput, match=r"tokens; at most 1,550 are accepted\.") as caught:
        predict("😀 👍" * 1000)

    assert caught.value.reason == "too_large"


def test_special_tokens_in_a_text_are_read_as_text() -> None:
    samples = TASK.preprocess("[PAD] [BEGIN] good")

    assert np.count_nonzero(samples.arrays["tokens"]) == 1 + samples.context.counts[0]
    assert samples.arrays["tokens"].ravel().tolist().count(1) == 1
    assert predict("[PAD] good [PAD]").words[0].word == "good"


def test_file_is_read_as_utf_8_with_or_without_bom() -> None:
    text = "café: good"

    assert predict(text) == predict(text.encode()) == predict(text.encode("utf-8-sig"))


def test_file_in_another_encoding_is_rejected() -> None:
    with pytest.raises(ValidationError, match="the text is not UTF-8: see byte 3"):
        predict("café: good".encode("latin-1"))


@pytest.mark.parametrize("body", [{}, {"text": 3}, {"text": None}, {"text": ["a"]}, {"text": "a", "words": 51}])
def test_invalid_request_is_rejected(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TASK.parse(body, Limits())


@pytest.mark.parametrize(
    "outputs",
    [
        {"probabilities": np.full((1, 2), np.nan, np.float32), "evidence": np.zeros((1, 8, 2), np.float32)},
        {"probabilities": np.full((1, 2), 0.5, np.float32), "evidence": np.full((1, 8, 2), np.inf, np.float32)},
        {"probabilities": np.full((1, 2), 0.5, np.float32), "evidence": np.zeros((1, 9, 2), np.float32)},
    ],
    ids=["NaN", "infinite evidence", "evidence for other tokens"],
)
def test_invalid_outputs_raise_invalid_output(outputs: dict[str, Any]) -> None:
    with pytest.raises(InvalidOutput):
        TASK.answer(lambda arrays: outputs, {"text": "good"})


def test_tokenizer_and_buckets_are_validated() -> None:
    with pytest.raises(ValidationError, match="The tokenizer cannot be read"):
        build_task(Sentiment, parameters_of(TASK), {"tokenizer.json": "{}"})

    with pytest.raises(ValueError, match="not lengths"):
        replace(TASK, buckets=(32, 16))


def test_examples_are_the_texts_and_the_first_without_words() -> None:
    assert [body["text"] for body in TASK.examples()] == [*TASK.example_texts, TASK.example_texts[0]]
    assert replace(TASK, example_texts=()).example()["text"].startswith("A wonderful film")
