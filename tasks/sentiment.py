"""Sentiment: one label for a text, with the words that decided it."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError
from tokenizers import Tokenizer

from tasks._characters import EMOJI_RANGES, MAX_MARKS, CleanText, clean_text
from tasks._text import encode, load_tokenizer, pad_tokens
from tasks.contract import (
    Answer,
    Array,
    Arrays,
    InvalidInput,
    InvalidOutput,
    Limits,
    Request,
    Samples,
    Task,
    TensorSpec,
    Upload,
)
from tasks.sending_mistakes import explain_binary

_MAX_PARTS = 50
"""Twice what an ordinary text of the maximum number of characters needs; a text of emoji only can exceed it."""
_EXAMPLES = (
    "A wonderful film: warm, funny and beautifully acted. I loved every minute of it.",
    "What a waste of time. The story is boring, the acting is terrible and the ending makes no sense.",
)
_JSON_VALUES = 100
"""How many values the JSON of a request may contain besides the characters of its text."""
_EMOJI = "".join(f"{chr(first)}-{chr(last)}" for first, last in EMOJI_RANGES)
_WORD = re.compile(rf"[^\W_]+(?:['’][^\W_]+)*|[{_EMOJI}][{_EMOJI}\u200d\ufe0f]*")
"""Letters and digits, with apostrophes between them; or a run of emoji."""


_MIN_CHARACTERS_PER_TOKEN = 0.75
"""A word of a script that the tokenizer did not learn has a token for each byte, two to four for each character."""
DEFAULT_TEMPERATURES = ((2, 13.3), (4, 6.22), (8, 4.41), (16, 3.33), (18, 1.0))
"""See `Sentiment.short_text_temperatures`."""
FOREIGN_WORD_PIECES = (0.33, 0.31, 0.36)
"""The fractions of words of one, two and more tokens in another language than that of training: measured with the
tokenizer of the model `imdb` 1 on 27 sentences in German, French, Spanish, Italian, Dutch, Turkish and Indonesian, 256
words."""
_MIN_EVIDENCE = 4.0
"""A text is called foreign if that is exp(4) = 55 times as likely. Of the 2,398 reviews that `imdb` 1 was validated on,
none is; of their beginnings of 1 to 40 words, at most 0.7%."""
_MAX_LANGUAGE_WORDS = 1_000
"""The language of a text is judged by as many words at its beginning."""
_MIN_FRACTION = 0.001
_UNFAMILIAR = "The model has probably not seen {what} in training, so its answer may mean nothing for this text."


def _decode_utf8(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mistake = explain_binary(value) or f"see byte {error.start}; save or send it as UTF-8"
        raise PydanticCustomError("value_error", "the text is not UTF-8: {mistake}", {"mistake": mistake}) from None


class SentimentRequest(Request):
    """A text, and options for the answer."""

    text: Annotated[str, BeforeValidator(_decode_utf8), Field(description="The text; an uploaded file must be UTF-8.")]
    words: Annotated[int, Field(ge=0, le=50, description="Maximum number of deciding words to return.")] = 8


class DecidingWord(BaseModel):
    """A word, its position in the text, and its contribution to the label's score."""

    word: str
    start: Annotated[int, Field(description="Index of its first code point in the text of the request, from 0.")]
    end: Annotated[int, Field(description="Index after its last code point.")]
    weight: Annotated[
        float, Field(description="Contribution to the label's logit: positive supports the label, negative opposes it.")
    ]


class SentimentAnswer(Answer):
    """The most probable label, and the words that decided."""

    label: str
    probability: Annotated[
        float,
        Field(description="How often such an answer is right. It is lower for a short text, which tells less."),
    ]
    probabilities: dict[str, float]
    words: Annotated[list[DecidingWord], Field(description="The deciding words, largest weight first.")]
    tokens: Annotated[int, Field(description="The number of tokens of the text; all of them were read.")]
    parts: Annotated[int, Field(description="The number of parts in which the text was read.")]
    notices: list[str] = []


@dataclass(frozen=True)
class TokenizedText:
    """A tokenized text, with what `postprocess` needs to know about it.

    Attributes:
        text: the clean text.
        positions: the position of each of its characters in the text of the request; None if nothing was left out.
        words: the start and end in `text` of each word, int64 (words, 2).
        spans: the start and end in `text` of each token, int64 (tokens, 2).
        counts: the number of tokens in each part.
        notices: messages to the client about how the text was read.
    """

    text: str
    positions: NDArray[np.int64] | None
    words: NDArray[np.int64]
    spans: NDArray[np.int64]
    counts: tuple[int, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sentiment(Task):
    """One label for a text.

    Attributes:
        labels: the classes, in the order of the network's outputs.
        tokenizer: the text of the tokenizer.json that training wrote; see `tasks/_text.py`.
        buckets: the lengths to which texts are padded, ascending; the last is the longest the network reads at once.
        example_texts: invented texts for documentation, warm-up and goldens.
        short_text_temperatures: pairs of a number of tokens, ascending, and the temperature that divides the logits of
            texts of so many tokens; see `interpolate_temperatures` for other lengths. A network that was trained on
            long texts is too sure of short ones. Training fits the temperatures to the beginnings of its validation
            texts. The default is for models that were published without them, whose goldens have texts of 18 tokens
            that were not tempered: it ends there, and its other values are those of the model `imdb` 2.
        word_pieces: the fractions of the words of ordinary texts that are one token, two tokens, and more. A text
            whose words fall into more tokens gets a notice, since its language is probably not that of training.
            The default was measured on the 2,398 validation reviews of the model `imdb`, 565,059 words.
    """

    labels: tuple[str, ...]
    tokenizer: str
    buckets: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    example_texts: tuple[str, ...] = ()
    short_text_temperatures: tuple[tuple[int, float], ...] = DEFAULT_TEMPERATURES
    word_pieces: tuple[float, float, float] = (0.865, 0.091, 0.044)

    upload: ClassVar[Upload | None] = Upload("text", ("text/plain",))
    files: ClassVar[Mapping[str, str]] = {"tokenizer": "tokenizer.json"}
    compared_fields: ClassVar[tuple[str, ...]] = ("label", "probability")

    def __post_init__(self) -> None:
        """Raises ValueError if the tokenizer cannot be loaded, or buckets or temperatures are not as described."""
        if list(self.buckets) != sorted(set(self.buckets)) or not self.buckets or self.buckets[0] < 2:
            raise ValueError(f"The buckets {self.buckets} are not lengths of at least 2 in ascending order.")
        lengths = [tokens for tokens, _ in self.short_text_temperatures]
        if lengths != sorted(set(lengths)) or min(lengths, default=1) < 1:
            raise ValueError(f"The temperatures are for {lengths} tokens, which are not ascending numbers from 1.")
        if not all(1 <= temperature < math.inf for _, temperature in self.short_text_temperatures):
            raise ValueError("The temperatures of short texts must be at least 1.")
        try:
            load_tokenizer(self.tokenizer)
        except Exception as error:  # The library raises plain Exceptions.
            raise ValueError(f"The tokenizer cannot be read: {error}.") from None

    @cached_property
    def loaded_tokenizer(self) -> Tokenizer:
        """The tokenizer, loaded."""
        return load_tokenizer(self.tokenizer)

    @property
    def request_type(self) -> type[SentimentRequest]:
        """The same for every model of this task."""
        return SentimentRequest

    @property
    def answer_type(self) -> type[SentimentAnswer]:
        """The same for every model of this task."""
        return SentimentAnswer

    @property
    def length_buckets(self) -> Mapping[str, tuple[int, ...]]:
        """The buckets, for the axis `tokens`."""
        return {"tokens": self.buckets}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tokens, padded on the right with 0, which the graph ignores."""
        return (TensorSpec("tokens", "int64", ("tokens",)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Calibrated probabilities, and each token's contribution to each class's score, centred over the classes."""
        classes = len(self.labels)
        return (
            TensorSpec("probabilities", "float32", (classes,)),
            TensorSpec("evidence", "float32", ("tokens", classes)),
        )

    def max_json_values(self, limits: Limits) -> int:
        """Count every character of the text as a value, since its commas are counted."""
        return limits.characters + _JSON_VALUES

    def decode(self, request: Any, limits: Limits) -> str:
        """Return the text unchanged. Raises InvalidInput if it is empty or too long."""
        text: str = request.text
        if not text.strip():
            raise InvalidInput("The text is empty.", reason="empty")
        _check_size(len(text), limits)
        clean = clean_text(text).text
        if not clean.strip():
            raise InvalidInput("The text contains only characters that are not shown, and spaces.", reason="empty")
        if not clean.isascii():  # NFKC expands some characters to many, and the tokenizer reads the expanded text.
            _check_size(len(unicodedata.normalize("NFKC", clean)), limits)
        return text

    def preprocess(self, raw: str) -> Samples:
        """Clean and tokenize the text: one sample per part. The context is its TokenizedText. Raises InvalidInput."""
        clean = clean_text(raw)
        encoded = encode(self.loaded_tokenizer, clean.text)
        count, max_count = len(encoded) - 1, _MAX_PARTS * (self.buckets[-1] - 1)
        if count > max_count:
            message = f"The text has {count:,} tokens; at most {max_count:,} are accepted."
            raise InvalidInput(message, reason="too_large")
        parts = split_tokens(encoded.tokens, self.buckets[-1])
        max_length = max(map(len, parts))
        tokens = pad_tokens(parts, next(bucket for bucket in self.buckets if bucket >= max_length))
        counts = tuple(len(part) - 1 for part in parts)
        words = np.array(find_words(clean.text), np.int64).reshape(-1, 2)
        spans = encoded.spans[1:]
        notices = (
            *_removal_notices(clean),
            *self._language_notices(clean.text, words, spans),
            *self._part_notices(counts),
        )
        tokenized = TokenizedText(clean.text, clean.positions, words, spans, counts, notices)
        return Samples({"tokens": tokens}, tokenized, answer_size=len(encoded))

    def _part_notices(self, counts: tuple[int, ...]) -> list[str]:
        if len(counts) < 2:
            return []
        return [
            f"The text has {sum(counts):,} tokens and was read in {len(counts)} parts of at most "
            f"{self.buckets[-1]:,}; the answer is the average of theirs, each counting by its length."
        ]

    def _language_notices(self, text: str, words: NDArray[np.int64], spans: NDArray[np.int64]) -> list[str]:
        """Tell the client if the text is probably not in a language and script of the training texts."""
        if not len(words):
            return ["The text contains no words."]
        words = words[:_MAX_LANGUAGE_WORDS]
        has_letters = np.array([any(map(str.isalnum, text[start:end])) for start, end in words.tolist()])
        judged = words[has_letters] if has_letters.any() else words  # Emoji are judged only if there is nothing else.
        tokens = count_word_tokens(spans, judged)
        characters = judged[:, 1] - judged[:, 0]
        if characters.sum() < _MIN_CHARACTERS_PER_TOKEN * tokens.sum():
            return [_UNFAMILIAR.format(what="this script" if has_letters.any() else "such emoji")]
        if language_evidence(tokens, self.word_pieces) > _MIN_EVIDENCE:
            return [_UNFAMILIAR.format(what="this language")]
        return []

    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> SentimentAnswer:
        """Return the most probable label over all parts, and the words that contributed most for or against it."""
        tokenized: TokenizedText = samples.context
        counts = np.array(tokenized.counts, np.float64)
        weights = counts / counts.sum() if counts.sum() else np.full(len(counts), 1 / len(counts))
        probabilities, evidence = weights @ outputs["probabilities"].astype(np.float64), outputs["evidence"]
        if not (np.isfinite(probabilities).all() and np.isfinite(evidence).all()):
            raise InvalidOutput("The network returned no finite probabilities for this text.")
        if evidence.shape[1] != samples.arrays["tokens"].shape[1]:
            raise InvalidOutput("The network returned evidence for a different number of tokens than it was given.")
        temperature = self.temperature(int(counts.sum()))
        probabilities = temper(probabilities, temperature)
        best = int(probabilities.argmax())
        token_evidence = np.concatenate(
            [
                weight / temperature * part[1 : 1 + count, best]
                for weight, part, count in zip(weights, evidence, tokenized.counts, strict=True)
            ]
        )
        return SentimentAnswer(
            label=self.labels[best],
            probability=round(float(probabilities[best]), 6),
            probabilities=dict(zip(self.labels, probabilities.round(6).tolist(), strict=True)),
            words=_deciding_words(tokenized, token_evidence, request.words) if request.words else [],
            tokens=sum(tokenized.counts),
            parts=len(tokenized.counts),
            notices=list(tokenized.notices),
        )

    def temperature(self, tokens: int) -> float:
        """Return the temperature for a text of so many tokens."""
        return float(interpolate_temperatures(self.short_text_temperatures, np.array([tokens]))[0])

    def example(self) -> dict[str, Any]:
        """Return a request with the first example text."""
        return {"text": (self.example_texts or _EXAMPLES)[0]}

    def examples(self) -> list[dict[str, Any]]:
        """Return a request for each example text, and one for the first without words."""
        texts = self.example_texts or _EXAMPLES
        return [*({"text": text} for text in texts), {"text": texts[0], "words": 0}]


def _check_size(characters: int, limits: Limits) -> None:
    if characters > limits.characters:
        message = f"The text has {characters:,} characters; at most {limits.characters:,} are accepted."
        raise InvalidInput(message, reason="too_large")


def _removal_notices(clean: CleanText) -> list[str]:
    notices = []
    if clean.controls:
        subject = "One control character was" if clean.controls == 1 else f"{clean.controls:,} control characters were"
        notices.append(f"{subject} left out.")
    if clean.marks:
        subject = "One combining mark was" if clean.marks == 1 else f"{clean.marks:,} combining marks were"
        notices.append(f"{subject} left out, since a letter has at most {MAX_MARKS}.")
    return notices


def interpolate_temperatures(
    temperatures: Sequence[tuple[int, float]], tokens: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return the temperature for each number of tokens, float64 (n,).

    `temperatures` are those at some numbers of tokens, ascending. Between them, the temperature is linear in the
    logarithm of the number of tokens, so that one more word never changes a probability abruptly; above the last, it
    falls to 1 at twice as many tokens. Below the first, it is the first.
    """
    if not temperatures:
        return np.ones(len(tokens))
    lengths, values = zip(*temperatures, strict=True)
    points = np.log2([*lengths, 2 * lengths[-1]])
    interpolated: NDArray[np.float64] = np.interp(np.log2(np.maximum(tokens, 1)), points, [*values, 1.0])
    return interpolated


def temper(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Divide the logits of the probabilities by the temperature."""
    if temperature == 1:
        return probabilities
    logits = np.log(probabilities.clip(np.finfo(np.float32).tiny)) / temperature
    tempered: NDArray[np.float64] = np.exp(logits - logits.max())
    tempered /= tempered.sum()
    return tempered


def split_tokens(tokens: NDArray[np.int64], max_length: int) -> list[NDArray[np.int64]]:
    """Split a text's tokens into parts of about equal length, at most `max_length`, all starting with BEGIN.

    `tokens` has BEGIN first. A text that fits is returned as one part.
    """
    content = tokens[1:]
    count = max(1, -(-len(content) // (max_length - 1)))
    return [np.concatenate([tokens[:1], part]) for part in np.array_split(content, count)]


def find_words(text: str) -> list[tuple[int, int]]:
    """Return start and end of each word: letters and digits with accents and apostrophes, or a run of emoji."""
    words: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        while end < len(text) and _is_accent(text[end]):
            end += 1
        continues = bool(words) and words[-1][1] == start and _is_accent(text[start - 1]) and text[start].isalnum()
        if continues:
            start, _ = words.pop()
        words.append((start, end))
    return words


def _is_accent(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character)[0] == "M"


def count_word_tokens(spans: NDArray[np.int64], words: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of tokens of each word, int64 (words,)."""
    word, inside = _words_of_tokens(spans, words)
    return np.bincount(word[inside], minlength=len(words)).astype(np.int64)


def sum_word_evidence(spans: NDArray[np.int64], evidence: Array, words: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum the evidence of the tokens of each word, float64 (words,)."""
    word, inside = _words_of_tokens(spans, words)
    sums = np.bincount(word[inside], weights=evidence[inside], minlength=len(words))
    return sums.astype(np.float64)  # Without words it is an array of integers.


def _words_of_tokens(spans: NDArray[np.int64], words: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return for each token the index of its word, and whether it belongs to a word at all.

    A token belongs to the first word with which it shares a character; whitespace and punctuation belong to none.
    """
    word = np.searchsorted(words[:, 1], spans[:, 0], side="right")
    inside = word < len(words)
    inside[inside] = words[word[inside], 0] < spans[inside, 1]
    return word, inside


def language_evidence(tokens: NDArray[np.int64], word_pieces: Sequence[float]) -> float:
    """Return the evidence that a text is in another language than the texts of training.

    It is the logarithm of a likelihood ratio. A tokenizer splits words of a language that it did not learn into more
    tokens. `tokens` is the number of tokens of each word of the text, and `word_pieces` are the fractions of words of
    one, two and more tokens in training.
    """
    counts = np.bincount(np.clip(tokens, 1, 3), minlength=4)[1:]
    ratios = np.log(FOREIGN_WORD_PIECES) - np.log(np.maximum(word_pieces, _MIN_FRACTION))
    return float(counts @ ratios)


def _deciding_words(tokenized: TokenizedText, evidence: Array, max_words: int) -> list[DecidingWord]:
    words = tokenized.words
    weights = sum_word_evidence(tokenized.spans, evidence, words).round(4)
    order = np.argsort(-np.abs(weights), kind="stable")[: min(max_words, np.count_nonzero(weights))]
    deciding = []
    for i in order.tolist():
        start, end = words[i].tolist()
        word = tokenized.text[start:end]
        if tokenized.positions is not None:
            start, end = int(tokenized.positions[start]), int(tokenized.positions[end - 1]) + 1
        deciding.append(DecidingWord(word=word, start=start, end=end, weight=float(weights[i])))
    return deciding
