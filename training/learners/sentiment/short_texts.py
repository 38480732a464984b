"""What short and foreign texts look like to a classifier: measured on the validation texts, and stored in the task.

A network that was trained on long texts is too sure of short ones. Its logits for them are divided by temperatures,
which are fitted on the beginnings of the validation texts. What a table says about the temperatures is measured on
other texts than they were fitted on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.contract import Run
from tasks.sentiment import Sentiment, TokenizedText, count_word_tokens
from training.core.results import Table
from training.evaluation import calibration
from training.learners.sentiment.evaluate import predict_texts

_WORDS = (1, 2, 3, 5, 8, 12, 20, 30, 50)
_TOKENS = (2, 4, 8, 16, 32, 64, 128)
_ORDINARY = 0.01
"""Texts longer than this quantile of the validation texts are not short: training has shown how to judge them.

The beginning of a long text tells less than a whole text of the same length: of the reviews of `imdb`, the network is
right about 77% of the beginnings of 33 to 64 tokens, and about 93% of the whole reviews of that length.
"""
_MIN_TEXTS = 50
_MAX_TEXTS = 2_500
_SMALLEST = 1e-30
_LINE_BREAK = re.compile(r"<br\s*/?>")


@dataclass(frozen=True)
class ShortTexts:
    """How a classifier does on texts of up to `tokens` tokens, more than in the range before.

    Attributes:
        tokens: the upper end of the range.
        count: the number of texts measured.
        accuracy: the fraction with the right label.
        confidence: the mean probability of the most probable label, without a temperature.
        temperature: the temperature that was fitted on all texts.
        tempered_confidence: the mean probability with a temperature that was fitted on the other half of the texts.
    """

    tokens: int
    count: int
    accuracy: float
    confidence: float
    temperature: float
    tempered_confidence: float


def measure_short_texts(
    task: Sentiment, run: Run, texts: Sequence[str], targets: NDArray[np.integer], half: NDArray[np.bool_]
) -> list[ShortTexts]:
    """Measure the classifier on the beginnings of texts, and fit a temperature for each range of lengths.

    `half` says which texts form one half, which is tempered as the other half suggests when the result is measured;
    texts of one group belong in the same half. Lengths that ordinary texts have, and ranges with too few texts, are
    left out.
    """
    chosen = np.linspace(0, len(texts) - 1, min(len(texts), _MAX_TEXTS)).round().astype(int).tolist()
    beginnings = [(_beginning(texts[i], words), i) for words in _WORDS for i in chosen]
    predictions = predict_texts(task, run, [text for text, _ in beginnings])
    probabilities = np.array([prediction.probabilities for prediction in predictions]).clip(_SMALLEST)
    tokens = np.array([prediction.tokens for prediction in predictions])
    sources = [i for _, i in beginnings]
    right, halves = targets[sources], half[sources]
    ordinary = np.quantile([len(task.preprocess(texts[i]).context.spans) for i in chosen], _ORDINARY)
    measured = []
    for shortest, longest in zip((0, *_TOKENS), _TOKENS, strict=False):
        members = (tokens > shortest) & (tokens <= longest)
        if longest < ordinary and members.sum() >= _MIN_TEXTS:
            measured.append(_measure(longest, probabilities[members], right[members], halves[members]))
    return measured


def _beginning(text: str, words: int) -> str:
    return " ".join(_LINE_BREAK.sub(" ", text[: 100 * words]).split()[:words])


def _measure(
    tokens: int, probabilities: NDArray[np.floating], targets: NDArray[np.integer], half: NDArray[np.bool_]
) -> ShortTexts:
    logits, labels, first = torch.from_numpy(np.log(probabilities)), torch.from_numpy(targets), torch.from_numpy(half)
    tempered = torch.zeros(len(labels), dtype=torch.float64)
    for members in (first, ~first):
        if members.any():
            tempered[members] = _temper(logits[members], _fit(logits[~members], labels[~members])).max(1).values
    is_right = probabilities.argmax(axis=1) == targets
    return ShortTexts(
        tokens,
        len(targets),
        float(is_right.mean()),
        float(probabilities.max(axis=1).mean()),
        _fit(logits, labels),
        float(tempered.mean()),
    )


def _fit(logits: Tensor, targets: Tensor) -> float:
    return max(1.0, calibration.fit_temperature(logits, targets)) if len(targets) else 1.0


def _temper(logits: Tensor, temperature: float) -> Tensor:
    return (logits.double() / temperature).softmax(1)


def temperatures(measured: Sequence[ShortTexts]) -> tuple[tuple[int, float], ...]:
    """Return the temperatures as the task stores them."""
    return tuple((row.tokens, round(row.temperature, 2)) for row in measured)


def tabulate_short_texts(measured: Sequence[ShortTexts]) -> Table:
    """Tabulate how often the label of a short text is right, beside the stated probability."""
    header = ("tokens", "n", "accuracy", "stated by the network", "temperature", "stated in answers")
    rows = tuple(
        (
            f"up to {row.tokens}",
            f"{row.count:,}",
            f"{row.accuracy:.3f}",
            f"{row.confidence:.3f}",
            f"{row.temperature:.2f}",
            f"{row.tempered_confidence:.3f}",
        )
        for row in measured
    )
    note = (
        "The beginnings of the validation texts. The network's logits are divided by the temperature. What answers "
        "state is measured with temperatures that were fitted on the other half of the texts."
    )
    return Table("Short texts", header, rows, note)


def measure_word_pieces(task: Sentiment, texts: Sequence[str]) -> tuple[float, float, float]:
    """Return the fractions of the words of texts that are one token, two tokens, and more."""
    counts = np.zeros(4, np.int64)
    for text in texts:
        tokenized: TokenizedText = task.preprocess(text).context
        tokens = count_word_tokens(tokenized.spans, tokenized.words)
        counts += np.bincount(tokens.clip(1, 3), minlength=4)
    one, two, more = (counts[1:] / max(1, counts.sum())).round(4).tolist()
    return one, two, more
