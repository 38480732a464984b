"""The tokenizer that training and service share."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tasks._text import BEGIN, PADDING, encode, encode_all, load_tokenizer, pad_tokens, train_tokenizer

SENTENCES = ["the film is good and the story is great", "isn't it a good film, and a great story?"] * 10
TOKENIZER = load_tokenizer(train_tokenizer(SENTENCES, size=350, min_count=2))
TEXTS = st.text(max_size=200).filter(lambda text: not any("\ud800" <= character <= "\udfff" for character in text))


def tokens_of(text: str) -> list[int]:
    return encode(TOKENIZER, text).tokens.tolist()


def test_text_starts_with_begin_and_frequent_words_are_one_token() -> None:
    encoded = encode(TOKENIZER, "good film")

    assert encoded.tokens[0] == BEGIN
    assert encoded.spans[0].tolist() == [0, 0]
    assert [("good film")[start:end].strip() for start, end in encoded.spans[1:].tolist()] == ["good", "film"]
    assert encoded.tokens.dtype == np.int64


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_spans_of_any_text_are_inside_it_and_in_order(text: str) -> None:
    encoded = encode(TOKENIZER, text)

    assert len(encoded.tokens) == len(encoded.spans)
    assert PADDING not in encoded.tokens.tolist()
    assert encoded.tokens.max() < TOKENIZER.get_vocab_size()
    assert all(0 <= start <= end <= len(text) for start, end in encoded.spans.tolist())
    assert encoded.spans.tolist() == sorted(encoded.spans.tolist())


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, max_size=5))
def test_encode_all_matches_encode(texts: list[str]) -> None:
    assert [tokens.tolist() for tokens in encode_all(TOKENIZER, texts)] == [tokens_of(text) for text in texts]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Good FILM", "good film"),
        ("good<br /><br/>film", "good\n\nfilm"),
        ("soooooooo good", "sooo good"),
        ("----------", "---"),
        ("\ufb01lm", "film"),
        ("caf\u00e9", "cafe\u0301"),
        ("𝔤𝔬𝔬𝔡", "good"),
    ],
)
def test_equivalent_texts_have_equal_tokens(first: str, second: str) -> None:
    assert tokens_of(first) == tokens_of(second)


def test_training_a_tokenizer_is_reproducible() -> None:
    first, second = (train_tokenizer(SENTENCES, size=350, min_count=2) for _ in range(2))

    assert json.loads(first) == json.loads(second)
    assert first == Tokenizer.from_str(first).to_str()


def test_rows_are_padded_on_the_right() -> None:
    rows = pad_tokens([np.array([1, 5, 6]), np.array([1])], 4)

    assert rows.tolist() == [[1, 5, 6, PADDING], [1, PADDING, PADDING, PADDING]]
    assert rows.dtype == np.int64
