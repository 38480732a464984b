"""What short and foreign texts look like to a classifier: measured on the validation texts, and stored in the task.

A network that was trained on long texts is too sure of short ones. Its logits for them are divided by temperatures,
which are fitted on the beginnings of the validation texts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.contract import Run
from tasks.sentiment import Sentiment, TokenizedText, count_word_tokens
from training.core.results import Table
from training.evaluation import calibration
from training.learners.sentiment.evaluate import predict_texts

_WORDS = (1, 2, 3, 5, 8, 12, 20, 30, 50)
_TOKENS = (2, 4, 8, 16, 32, 64, 128)
_ORDINARY = 0.1
"""Texts longer than this quantile of the validation texts are not short."""
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
        temperature: the temperature that was fitted.
        tempered_confidence: the mean probability with it.
    """

    tokens: int
    count: int
    accuracy: float
    confidence: float
    temperature: float
    tempered_confidence: float


def measure_short_texts(
    task: Sentiment, run: Run, texts: Sequence[str], targets: NDArray[np.integer]
) -> list[ShortTexts]:
    """Measure the classifier on the beginnings of texts, and fit a temperature for each range of lengths.

    Lengths that ordinary texts have, and ranges with too few texts, are left out.
    """
    chosen = np.linspace(0, len(texts) - 1, min(len(texts), _MAX_TEXTS)).round().astype(int).tolist()
    beginnings = [(_beginning(texts[i], words), i) for words in _WORDS for i in chosen]
    predictions = predict_texts(task, run, [text for text, _ in beginnings])
    probabilities = np.array([prediction.probabilities for prediction in predictions]).clip(_SMALLEST)
    tokens = np.array([prediction.tokens for prediction in predictions])
    right = targets[[i for _, i in beginnings]]
    ordinary = np.quantile([len(task.preprocess(texts[i]).context.spans) for i in chosen], _ORDINARY)
    measured = []
    for shortest, longest in zip((0, *_TOKENS), _TOKENS, strict=False):
        members = (tokens > shortest) & (tokens <= longest)
        if longest < ordinary and members.sum() >= _MIN_TEXTS:
            measured.append(_measure(longest, probabilities[members], right[members]))
    return measured


def _beginning(text: str, words: int) -> str:
    return " ".join(_LINE_BREAK.sub(" ", text[: 100 * words]).split()[:words])


def _measure(tokens: int, probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> ShortTexts:
    logits = torch.from_numpy(np.log(probabilities))
    temperature = max(1.0, calibration.fit_temperature(logits, torch.from_numpy(targets)))
    is_right = probabilities.argmax(axis=1) == targets
    tempered = (logits / temperature).softmax(1).max(1).values
    confidence = probabilities.max(axis=1)
    return ShortTexts(
        tokens, len(targets), float(is_right.mean()), float(confidence.mean()), temperature, float(tempered.mean())
    )


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
    note = "The beginnings of the validation texts. The network's logits are divided by the temperature."
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
