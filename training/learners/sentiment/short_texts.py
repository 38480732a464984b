"""What short and foreign texts look like to a classifier: measured on the validation texts, and stored in the task.

A network that was trained on long texts is too sure of short ones. Its logits for them are divided by temperatures,
which are fitted on the beginnings of the validation texts: one temperature at the end of each range of lengths, all
together, since the task interpolates between them. What a table says about the temperatures is measured on other texts
than they were fitted on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from tasks.contract import Run
from tasks.sentiment import Sentiment, TokenizedText, count_word_tokens, interpolate_temperatures
from training.core.results import Table
from training.evaluation.calibration import MIN_SAMPLES
from training.evaluation.classification import wilson_interval
from training.learners.sentiment.evaluate import predict_texts

_WORDS = (1, 2, 3, 5, 8, 12, 20, 30, 50)
_TOKENS = (2, 4, 8, 16, 32, 64, 128)
_ORDINARY = 0.01
"""Texts longer than this quantile of the validation texts are not short: training has shown how to judge them.

The beginning of a long text tells less than a whole text of the same length: of the reviews of `imdb`, the network is
right about 77% of the beginnings of 33 to 64 tokens, and about 93% of the whole reviews of that length.
"""
_MAX_TEXTS = 2_500
_SMALLEST = 1e-30
_MAX_TEMPERATURE = 20.0
_LIMIT = 0.99 * _MAX_TEMPERATURE
_LINE_BREAK = re.compile(r"<br\s*/?>")


@dataclass(frozen=True)
class ShortTexts:
    """How a classifier does on texts of up to `tokens` tokens, more than in the range before.

    Attributes:
        tokens: the upper end of the range.
        count: the number of texts measured.
        sources: the number of validation texts of which they are the beginnings.
        accuracy: the fraction with the right label.
        confidence: the mean probability of the most probable label, without a temperature.
        temperature: the temperature at `tokens` tokens, fitted on all texts.
        tempered_confidence: the mean probability with temperatures that were fitted on the other half of the texts.
    """

    tokens: int
    count: int
    sources: int
    accuracy: float
    confidence: float
    temperature: float
    tempered_confidence: float


def measure_short_texts(
    task: Sentiment, run: Run, texts: Sequence[str], targets: NDArray[np.integer], half: NDArray[np.bool_]
) -> list[ShortTexts]:
    """Measure the classifier on the beginnings of texts, and fit a temperature at the end of each range of lengths.

    `half` says which texts form one half, which is tempered as the other half suggests when the result is measured;
    texts of one group belong in the same half. Lengths that ordinary texts have, and ranges with too few texts to
    calibrate with, are left out.
    """
    if len(texts) < MIN_SAMPLES:
        return []
    chosen = np.linspace(0, len(texts) - 1, min(len(texts), _MAX_TEXTS)).round().astype(int).tolist()
    beginnings = [(_beginning(texts[i], words), i) for words in _WORDS for i in chosen]
    predictions = predict_texts(task, run, [text for text, _ in beginnings])
    probabilities = np.array([prediction.probabilities for prediction in predictions]).clip(_SMALLEST)
    tokens = np.array([prediction.tokens for prediction in predictions])
    sources = np.array([i for _, i in beginnings])
    ordinary = np.quantile([len(task.preprocess(texts[i]).context.spans) for i in chosen], _ORDINARY)
    ranges = {
        longest: members
        for shortest, longest in zip((0, *_TOKENS), _TOKENS, strict=False)
        if longest < ordinary
        and len(np.unique(sources[members := (tokens > shortest) & (tokens <= longest)])) >= MIN_SAMPLES
    }
    if not ranges:
        return []
    logits, right = np.log(probabilities), targets[sources]
    fitted, tempered = _fit_crossed(logits, right, tokens, tuple(ranges), half[sources])
    is_right = probabilities.argmax(axis=1) == right
    return [
        ShortTexts(
            longest,
            int(members.sum()),
            len(set(sources[members].tolist())),
            float(is_right[members].mean()),
            float(probabilities[members].max(axis=1).mean()),
            temperature,
            float(tempered[members].mean()),
        )
        for (longest, members), (_, temperature) in zip(ranges.items(), fitted, strict=True)
    ]


def _beginning(text: str, words: int) -> str:
    return " ".join(_LINE_BREAK.sub(" ", text[: 100 * words]).split()[:words])


def _fit_crossed(
    logits: NDArray[np.floating],
    targets: NDArray[np.integer],
    tokens: NDArray[np.integer],
    lengths: Sequence[int],
    half: NDArray[np.bool_],
) -> tuple[list[tuple[int, float]], NDArray[np.floating]]:
    """Fit the temperatures at these lengths on all texts that are not longer.

    Returns them, and each text's largest probability with temperatures that were fitted on the other half.
    """
    is_short = tokens <= lengths[-1]
    tempered = np.zeros(len(targets))
    for members in (half, ~half):
        others = is_short & ~members
        temperature = interpolate_temperatures(fit_temperatures(logits, targets, tokens, lengths, others), tokens)
        exact = torch.from_numpy(logits / temperature[:, None]).softmax(1).max(1).values
        tempered[members] = exact.numpy()[members]
    return fit_temperatures(logits, targets, tokens, lengths, is_short), tempered


def fit_temperatures(
    logits: NDArray[np.floating],
    targets: NDArray[np.integer],
    tokens: NDArray[np.integer],
    lengths: Sequence[int],
    members: NDArray[np.bool_],
) -> list[tuple[int, float]]:
    """Return the temperatures at these lengths with maximum likelihood on the members, between 1 and 20.

    A text's temperature is interpolated from them as the task does it.
    """
    if not members.any():
        return [(length, 1.0) for length in lengths]
    shares = torch.from_numpy(_interpolation(tokens[members], lengths))
    exact, labels = torch.from_numpy(logits[members]).double(), torch.from_numpy(targets[members])
    free = torch.full((len(lengths),), -2.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def values() -> Tensor:
        return 1 + (_MAX_TEMPERATURE - 1) * free.sigmoid()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(exact / (shares @ values())[:, None], labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return list(zip(lengths, values().tolist(), strict=True))


def _interpolation(tokens: NDArray[np.integer], lengths: Sequence[int]) -> NDArray[np.float64]:
    """Return the share of each length's temperature in that of each text, float64 (texts, lengths)."""
    shares = [np.interp(np.log2(np.maximum(tokens, 1)), np.log2(lengths), row) for row in np.eye(len(lengths))]
    return np.stack(shares, axis=1)


def temperatures(measured: Sequence[ShortTexts]) -> tuple[tuple[int, float], ...]:
    """Return the temperatures as the task stores them."""
    return tuple((row.tokens, round(row.temperature, 2)) for row in measured)


def tabulate_short_texts(measured: Sequence[ShortTexts]) -> Table:
    """Tabulate how often the label of a short text is right, beside the stated probability."""
    header = ("tokens", "n", "accuracy", "stated by the network", "temperature", "stated in answers", "accuracy, 95 %")
    rows = tuple(
        (
            f"up to {row.tokens}",
            f"{row.count:,}",
            f"{row.accuracy:.3f}",
            f"{row.confidence:.3f}",
            f"{row.temperature:.2f}",
            f"{row.tempered_confidence:.3f}",
            "{:.3f} to {:.3f}".format(*wilson_interval(row.accuracy, row.sources)),
        )
        for row in measured
    )
    note = (
        "The beginnings of the validation texts. The network's logits are divided by the temperature, which is that at "
        "the end of the range; it is interpolated over the logarithm of the number of tokens, down to 1 at twice the "
        "tokens of the last range. What answers state is measured with temperatures that were fitted on the other half "
        "of the texts. The intervals count each validation text once per range."
    )
    if any(row.temperature > _LIMIT for row in measured):
        note += f" A temperature of {_MAX_TEMPERATURE:g}, the limit, means that the label of such texts cannot be told."
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
