"""Does this text sound glad?"""

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

from tasks._text import encode, padded, tokenizer_from
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
"""What a text of the most characters comes to, twice over, as texts go; one of nothing but emoji comes to far more."""
_EXAMPLES = (
    "A wonderful film: warm, funny and beautifully acted. I loved every minute of it.",
    "What a waste of time. The story is boring, the acting is terrible and the ending makes no sense.",
)
_EMOJI = r"\u2600-\u27bf\U0001f000-\U0001faff"
_WORD = re.compile(rf"[^\W_]+(?:['’][^\W_]+)*|[{_EMOJI}][{_EMOJI}\u200d\ufe0f]*")
"""Letters and digits, with apostrophes between them; or a run of emoji."""


def _decoded(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = "the text is not UTF-8: see byte {place}; save or send it as UTF-8"
        raise PydanticCustomError("value_error", message, {"place": error.start}) from None


class SentimentRequest(Request):
    """A text, and how much to say about it."""

    text: Annotated[str, BeforeValidator(_decoded), Field(description="The text; as a file, in UTF-8.")]
    words: Annotated[int, Field(ge=0, le=50, description="How many of the words that decided to return.")] = 8


class DecidingWord(BaseModel):
    """A word, where in the text it stands, and how much it added to the label's score."""

    word: str
    start: Annotated[int, Field(description="In code points of the text that was sent, from 0.")]
    end: Annotated[int, Field(description="One after its last code point.")]
    weight: Annotated[
        float, Field(description="Above 0 it speaks for the label, below against it; in units of the logit.")
    ]


class SentimentAnswer(Answer):
    """The likelier label, and what decided."""

    label: str
    probability: float
    probabilities: dict[str, float]
    words: Annotated[list[DecidingWord], Field(description="The words that decided, those of most weight first.")]
    tokens: Annotated[int, Field(description="How many tokens the text has; all of them were read.")]
    parts: Annotated[int, Field(description="In how many parts they were read, one after the other.")]
    notices: list[str] = []


@dataclass(frozen=True)
class TokenizedText:
    """What `postprocess` has to know of the text that was read.

    Attributes:
        text: without the characters that were left out.
        positions: where each of its characters stands in the text that was sent; None where nothing was left out.
        spans: for each token, which characters of `text` it stands for.
        counts: how many of the tokens each part has.
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
        tokenizer: the tokenizer.json that training wrote; see `tasks/_text.py`.
        buckets: the lengths that texts are padded to, ascending; the last is how much the network reads at once.
        example_texts: made up, belonging to nobody: for the documentation, warm-up and goldens.
    """

    labels: tuple[str, ...]
    tokenizer: str
    buckets: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    example_texts: tuple[str, ...] = ()

    upload: ClassVar[Upload | None] = Upload("text", ("text/plain",))
    files: ClassVar[Mapping[str, str]] = {"tokenizer": "tokenizer.json"}
    compared_fields: ClassVar[tuple[str, ...]] = ("label", "probability")

    def __post_init__(self) -> None:
        """Raises ValueError: what should be a tokenizer is none, or the buckets do not grow."""
        if list(self.buckets) != sorted(set(self.buckets)) or not self.buckets or self.buckets[0] < 2:
            raise ValueError(f"The buckets {self.buckets} are not lengths of at least 2, each larger than the last.")
        try:
            tokenizer_from(self.tokenizer)
        except Exception as error:  # The library has no errors of its own.
            raise ValueError(f"The tokenizer cannot be read: {error}.") from None

    @cached_property
    def words_to_tokens(self) -> Tokenizer:
        """The tokenizer itself."""
        return tokenizer_from(self.tokenizer)

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
        """The buckets."""
        return {"tokens": self.buckets}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tokens, filled up on the right with 0, which the graph leaves out of account."""
        return (TensorSpec("tokens", "int64", ("tokens",)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Calibrated probabilities; and how much each token adds to each class's score, centred over the classes."""
        classes = len(self.labels)
        return (
            TensorSpec("probabilities", "float32", (classes,)),
            TensorSpec("evidence", "float32", ("tokens", classes)),
        )

    def decode(self, request: Any, limits: Limits) -> str:
        """The text as it was sent."""
        text: str = request.text
        if not text.strip():
            raise InvalidInput("The text is empty.", reason="empty")
        # Some characters stand for many: written out, as they will be, they count as that many.
        size = len(text) if len(text) > limits.characters else len(unicodedata.normalize("NFKC", text))
        if size > limits.characters:
            message = f"The text has {size:,} characters; at most {limits.characters:,} are accepted."
            raise InvalidInput(message, reason="too_large")
        if not without_control_characters(text)[0].strip():
            raise InvalidInput("The text has nothing but control characters and blanks.", reason="empty")
        return text

    def preprocess(self, raw: str) -> Samples:
        """One sample, or as many as the text has parts. The context is its TokenizedText. Raises InvalidInput."""
        text, positions = without_control_characters(raw)
        encoded = encode(self.words_to_tokens, text)
        parts = parts_of(encoded.tokens, self.buckets[-1])
        if len(parts) > _MAX_PARTS:
            message = (
                f"The text has {len(encoded.tokens):,} tokens; at most {_MAX_PARTS * self.buckets[-1]:,} are accepted."
            )
            raise InvalidInput(message, reason="too_large")
        longest = max(map(len, parts))
        tokens = padded(parts, next(bucket for bucket in self.buckets if bucket >= longest))
        counts = tuple(len(part) - 1 for part in parts)
        notices = tuple(self._notices(len(raw) - len(text), counts))
        tokenized = TokenizedText(text, positions, encoded.spans[1:], counts, notices)
        return Samples({"tokens": tokens}, tokenized, size_of_answer=len(encoded.tokens))

    def _notices(self, left_out: int, counts: tuple[int, ...]) -> list[str]:
        notices = []
        if left_out:
            what = "One control character was" if left_out == 1 else f"{left_out:,} control characters were"
            notices.append(f"{what} left out.")
        if len(counts) > 1:
            notices.append(
                f"The text has {sum(counts):,} tokens and was read in {len(counts)} parts of at most "
                f"{self.buckets[-1]:,}; the answer is the average of theirs, each counting by its length."
            )
        return notices

    def postprocess(self, outputs: Arrays, samples: Samples, request: Any) -> SentimentAnswer:
        """The likelier label over all parts, and the words that spoke most for or against it."""
        tokenized: TokenizedText = samples.context
        counts = np.array(tokenized.counts, np.float64)
        shares = counts / counts.sum() if counts.sum() else np.full(len(counts), 1 / len(counts))
        probabilities, evidence = shares @ outputs["probabilities"].astype(np.float64), outputs["evidence"]
        if not (np.isfinite(probabilities).all() and np.isfinite(evidence).all()):
            raise InvalidOutput("The network gave no finite probabilities for this text.")
        if evidence.shape[1] != samples.arrays["tokens"].shape[1]:
            raise InvalidOutput("The network gave evidence for another number of tokens than it was asked about.")
        best = int(probabilities.argmax())
        of_tokens = np.concatenate(
            [share * part[1 : 1 + n, best] for share, part, n in zip(shares, evidence, tokenized.counts, strict=True)]
        )
        return SentimentAnswer(
            label=self.labels[best],
            probability=round(float(probabilities[best]), 6),
            probabilities=dict(zip(self.labels, probabilities.round(6).tolist(), strict=True)),
            words=_deciding_words(tokenized, of_tokens, request.words) if request.words else [],
            tokens=sum(tokenized.counts),
            parts=len(tokenized.counts),
            notices=list(tokenized.notices),
        )

    def example(self) -> dict[str, Any]:
        """The first of the example texts."""
        return {"text": (self.example_texts or _EXAMPLES)[0]}

    def examples(self) -> list[dict[str, Any]]:
        """Each of the example texts, and the first without its words."""
        texts = self.example_texts or _EXAMPLES
        return [*({"text": text} for text in texts), {"text": texts[0], "words": 0}]


def without_control_characters(text: str) -> tuple[str, NDArray[np.int64] | None]:
    """The text without what nobody can read (NUL, escape codes, halves of surrogate pairs); blanks stay.

    Also returns where each character that is left stands in `text`, int64; None where all of them are left.
    """
    if text.isprintable():
        return text, None
    positions = [i for i, character in enumerate(text) if character.isprintable() or not _is_control(character)]
    if len(positions) == len(text):
        return text, None
    return "".join(text[i] for i in positions), np.array(positions, np.int64)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") and not character.isspace()


def parts_of(tokens: NDArray[np.int64], longest: int) -> list[NDArray[np.int64]]:
    """A text's tokens in parts of about equal length, none of more than `longest`; each begins as the text does.

    `tokens` has BEGIN first. A text that fits is one part.
    """
    content = tokens[1:]
    count = max(1, -(-len(content) // (longest - 1)))
    return [np.concatenate([tokens[:1], part]) for part in np.array_split(content, count)]


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end: letters and digits with accents and apostrophes, or a run of emoji."""
    found: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        start, end = match.span()
        while end < len(text) and _is_accent(text[end]):
            end += 1
        goes_on = bool(found) and found[-1][1] == start and _is_accent(text[start - 1]) and text[start].isalnum()
        if goes_on:
            start, _ = found.pop()
        found.append((start, end))
    return found


def _is_accent(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character)[0] == "M"


def evidence_by_word(
    spans: tuple[tuple[int, int], ...], evidence: Array, words: list[tuple[int, int]]
) -> NDArray[np.float64]:
    """What the tokens of each word add together, float64 (words,).

    A token belongs to the first word that it shares a character with; blanks and punctuation belong to none.
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


def _deciding_words(tokenized: TokenizedText, evidence: Array, most: int) -> list[DecidingWord]:
    words = words_of(tokenized.text)
    weights = evidence_by_word(tokenized.spans, evidence, words).round(4)
    order = np.argsort(-np.abs(weights), kind="stable")[: min(most, np.count_nonzero(weights))]
    found = []
    for i in order.tolist():
        start, end = words[i]
        word = tokenized.text[start:end]
        if tokenized.positions is not None:
            start, end = int(tokenized.positions[start]), int(tokenized.positions[end - 1]) + 1
        found.append(DecidingWord(word=word, start=start, end=end, weight=float(weights[i])))
    return found
