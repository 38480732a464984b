"""Sentiment: one label for a text, with the words that decided it."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError
from tokenizers import Tokenizer

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

_MAX_PARTS = 50
"""Twice what an ordinary text of the maximum number of characters needs; a text of emoji only can exceed it."""
_EXAMPLES = (
    "A wonderful film: warm, funny and beautifully acted. I loved every minute of it.",
    "What a waste of time. The story is boring, the acting is terrible and the ending makes no sense.",
)
_EMOJI = r"\u2600-\u27bf\U0001f000-\U0001faff"
_WORD = re.compile(rf"[^\W_]+(?:['’][^\W_]+)*|[{_EMOJI}][{_EMOJI}\u200d\ufe0f]*")
"""Letters and digits, with apostrophes between them; or a run of emoji."""


def _decode_utf8(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = "the text is not UTF-8: see byte {place}; save or send it as UTF-8"
        raise PydanticCustomError("value_error", message, {"place": error.start}) from None


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
    probability: float
    probabilities: dict[str, float]
    words: Annotated[list[DecidingWord], Field(description="The deciding words, largest weight first.")]
    tokens: Annotated[int, Field(description="The number of tokens of the text; all of them were read.")]
    parts: Annotated[int, Field(description="The number of parts in which the text was read.")]
    notices: list[str] = []


@dataclass(frozen=True)
class TokenizedText:
    """A tokenized text, with what `postprocess` needs to know about it.

    Attributes:
        text: the text without its control characters.
        positions: the position of each of its characters in the text of the request; None if nothing was removed.
        spans: the start and end in `text` of each token.
        counts: the number of tokens in each part.
        notices: messages to the client about how the text was read.
    """

    text: str
    positions: NDArray[np.int64] | None
    spans: tuple[tuple[int, int], ...]
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
    """

    labels: tuple[str, ...]
    tokenizer: str
    buckets: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    example_texts: tuple[str, ...] = ()

    upload: ClassVar[Upload | None] = Upload("text", ("text/plain",))
    files: ClassVar[Mapping[str, str]] = {"tokenizer": "tokenizer.json"}
    compared_fields: ClassVar[tuple[str, ...]] = ("label", "probability")

    def __post_init__(self) -> None:
        """Raises ValueError if the tokenizer cannot be loaded, or the buckets are not ascending."""
        if list(self.buckets) != sorted(set(self.buckets)) or not self.buckets or self.buckets[0] < 2:
            raise ValueError(f"The buckets {self.buckets} are not lengths of at least 2 in ascending order.")
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

    def decode(self, request: Any, limits: Limits) -> str:
        """Return the text unchanged. Raises InvalidInput if it is empty or too long."""
        text: str = request.text
        if not text.strip():
            raise InvalidInput("The text is empty.", reason="empty")
        # NFKC expands some characters to many, and the tokenizer reads the expanded text.
        size = len(text) if len(text) > limits.characters else len(unicodedata.normalize("NFKC", text))
        if size > limits.characters:
            message = f"The text has {size:,} characters; at most {limits.characters:,} are accepted."
            raise InvalidInput(message, reason="too_large")
        if not strip_control_characters(text)[0].strip():
            raise InvalidInput("The text contains only control characters and whitespace.", reason="empty")
        return text

    def preprocess(self, raw: str) -> Samples:
        """Tokenize the text: one sample per part. The context is its TokenizedText. Raises InvalidInput."""
        text, positions = strip_control_characters(raw)
        encoded = encode(self.loaded_tokenizer, text)
        parts = split_tokens(encoded.tokens, self.buckets[-1])
        if len(parts) > _MAX_PARTS:
            message = (
                f"The text has {len(encoded.tokens):,} tokens; at most {_MAX_PARTS * self.buckets[-1]:,} are accepted."
            )
            raise InvalidInput(message, reason="too_large")
        max_length = max(map(len, parts))
        tokens = pad_tokens(parts, next(bucket for bucket in self.buckets if bucket >= max_length))
        counts = tuple(len(part) - 1 for part in parts)
        notices = tuple(self._notices(len(raw) - len(text), counts))
        tokenized = TokenizedText(text, positions, encoded.spans[1:], counts, notices)
        return Samples({"tokens": tokens}, tokenized, answer_size=len(encoded.tokens))

    def _notices(self, removed: int, counts: tuple[int, ...]) -> list[str]:
        notices = []
        if removed:
            subject = "One control character was" if removed == 1 else f"{removed:,} control characters were"
            notices.append(f"{subject} left out.")
        if len(counts) > 1:
            notices.append(
                f"The text has {sum(counts):,} tokens and was read in {len(counts)} parts of at most "
                f"{self.buckets[-1]:,}; the answer is the average of theirs, each counting by its length."
            )
        return notices

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
        best = int(probabilities.argmax())
        token_evidence = np.concatenate(
            [
                weight * part[1 : 1 + count, best]
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

    def example(self) -> dict[str, Any]:
        """Return a request with the first example text."""
        return {"text": (self.example_texts or _EXAMPLES)[0]}

    def examples(self) -> list[dict[str, Any]]:
        """Return a request for each example text, and one for the first without words."""
        texts = self.example_texts or _EXAMPLES
        return [*({"text": text} for text in texts), {"text": texts[0], "words": 0}]


def strip_control_characters(text: str) -> tuple[str, NDArray[np.int64] | None]:
    """Remove control characters (NUL, escape codes) and surrogates, but not whitespace.

    Also returns the positions in `text` of the remaining characters, int64; None if nothing was removed.
    """
    if text.isprintable():
        return text, None
    positions = [i for i, character in enumerate(text) if character.isprintable() or not _is_control(character)]
    if len(positions) == len(text):
        return text, None
    return "".join(text[i] for i in positions), np.array(positions, np.int64)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") and not character.isspace()


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


def sum_word_evidence(
    spans: tuple[tuple[int, int], ...], evidence: Array, words: list[tuple[int, int]]
) -> NDArray[np.float64]:
    """Sum the evidence of the tokens of each word, float64 (words,).

    A token belongs to the first word with which it shares a character; whitespace and punctuation belong to none.
    """
    sums = np.zeros(len(words))
    if not words or not spans:
        return sums
    starts, ends = np.array(words).T
    token_starts, token_ends = np.array(spans).T
    word = np.searchsorted(ends, token_starts, side="right")
    inside = word < len(words)
    inside[inside] = starts[word[inside]] < token_ends[inside]
    np.add.at(sums, word[inside], evidence[inside])
    return sums


def _deciding_words(tokenized: TokenizedText, evidence: Array, max_words: int) -> list[DecidingWord]:
    words = find_words(tokenized.text)
    weights = sum_word_evidence(tokenized.spans, evidence, words).round(4)
    order = np.argsort(-np.abs(weights), kind="stable")[: min(max_words, np.count_nonzero(weights))]
    deciding = []
    for i in order.tolist():
        start, end = words[i]
        word = tokenized.text[start:end]
        if tokenized.positions is not None:
            start, end = int(tokenized.positions[start]), int(tokenized.positions[end - 1]) + 1
        deciding.append(DecidingWord(word=word, start=start, end=end, weight=float(weights[i])))
    return deciding
