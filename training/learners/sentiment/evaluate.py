"""Evaluation of a text classifier: accuracy by length, deciding words, mistakes, a baseline, and identity terms.

Texts are predicted through the task, as the service does it: long texts in parts, short texts tempered, and words
joined from their tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.contract import Arrays, Run, Samples
from tasks.sentiment import Sentiment, TokenizedText, sum_word_evidence, temper
from training.core.results import Figure, Table
from training.evaluation import classification
from training.learners.sentiment import plots as sentiment_plots
from training.learners.sentiment.tfidf_baseline import Baseline
from training.reporting import plots

FloatArray = NDArray[np.floating]
Targets = NDArray[np.integer]

_LENGTHS = (64, 128, 256, 512, 1024)
_MIN_COUNT = 20
_MAX_WORDS = 20
_MIN_GROUP = 50
_MAX_QUOTED_CHARACTERS = 160
_BATCH = 32


@dataclass(frozen=True)
class TextPrediction:
    """The prediction of one text.

    Attributes:
        probabilities: the probability of each label, float64 (labels,).
        tokens: the number of tokens of the text.
        parts: the number of parts in which it was read.
        words: its words, in lower case.
        evidence: what each word adds to the logit of each label, float64 (words, labels).
    """

    probabilities: FloatArray
    tokens: int
    parts: int
    words: tuple[str, ...]
    evidence: FloatArray


@dataclass(frozen=True)
class PredictedTexts:
    """Predictions of the validation texts, with their true labels."""

    labels: tuple[str, ...]
    texts: Sequence[str]
    targets: Targets
    predictions: Sequence[TextPrediction]

    @property
    def probabilities(self) -> FloatArray:
        """Of each text and label, float64 (texts, labels)."""
        return np.array([prediction.probabilities for prediction in self.predictions])

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """Whether the most likely label of each text is the true one."""
        is_right: NDArray[np.bool_] = self.probabilities.argmax(axis=1) == self.targets
        return is_right

    @property
    def tokens(self) -> NDArray[np.int64]:
        """How long each text is."""
        return np.array([prediction.tokens for prediction in self.predictions], np.int64)


def module_runner(served: nn.Module, names: Sequence[str] = ("probabilities", "evidence")) -> Run:
    """Return a function that runs the module to export as the service runs its graph."""

    def run(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = served(*(torch.from_numpy(array) for array in arrays.values()))
        return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}

    return run


def predict_texts(task: Sentiment, run: Run, texts: Sequence[str]) -> list[TextPrediction]:
    """Predict texts; those of one length bucket share batches."""
    pending: dict[int, list[tuple[int, Samples]]] = {}
    predictions: dict[int, TextPrediction] = {}
    for i, text in enumerate(texts):
        samples = task.preprocess(text)
        batch = pending.setdefault(samples.arrays["tokens"].shape[1], [])
        batch.append((i, samples))
        if sum(len(samples) for _, samples in batch) >= _BATCH:
            predictions.update(_predict_batch(task, run, batch))
            batch.clear()
    for batch in pending.values():
        predictions.update(_predict_batch(task, run, batch))
    return [predictions[i] for i in range(len(texts))]


def _predict_batch(
    task: Sentiment, run: Run, batch: Sequence[tuple[int, Samples]]
) -> Iterator[tuple[int, TextPrediction]]:
    if not batch:
        return
    outputs = run({"tokens": np.concatenate([samples.arrays["tokens"] for _, samples in batch])})
    start = 0
    for i, samples in batch:
        rows = slice(start, start + len(samples))
        start = rows.stop
        tokenized: TokenizedText = samples.context
        temperature = task.temperature(sum(tokenized.counts))
        yield i, _combine_parts(tokenized, temperature, outputs["probabilities"][rows], outputs["evidence"][rows])


def _combine_parts(
    tokenized: TokenizedText, temperature: float, probabilities: FloatArray, evidence: FloatArray
) -> TextPrediction:
    """Average the parts of a text, weighted by their lengths, and sum the evidence of tokens by word."""
    total = sum(tokenized.counts)
    weights = np.array(tokenized.counts, np.float64) / max(1, total)
    token_evidence = np.concatenate(
        [
            weight / temperature * part[1 : 1 + n]
            for weight, part, n in zip(weights, evidence, tokenized.counts, strict=True)
        ]
    )
    tempered = temper(weights @ probabilities.astype(np.float64), temperature)
    columns = [sum_word_evidence(tokenized.spans, column, tokenized.words) for column in token_evidence.T]
    words = tuple(tokenized.text[start:end].lower() for start, end in tokenized.words.tolist())
    return TextPrediction(tempered, total, len(weights), words, np.stack(columns, 1))


def tabulate_lengths(predicted: PredictedTexts) -> Table:
    """Tabulate the accuracy by length of the texts."""
    rows = []
    for name, members in _length_groups(predicted.tokens):
        is_right, count = predicted.is_right[members], int(members.sum())
        low, high = classification.wilson_interval(float(is_right.mean()), count)
        confidence = predicted.probabilities[members].max(axis=1).mean()
        rows.append((name, f"{count:,}", f"{is_right.mean():.3f}", f"{low:.3f} to {high:.3f}", f"{confidence:.3f}"))
    split = sum(prediction.parts > 1 for prediction in predicted.predictions)
    note = f"{split:,} of the texts were read in parts." if split else ""
    return Table("By length", ("tokens", "count", "accuracy", "95 %", "mean confidence"), tuple(rows), note)


def _length_groups(tokens: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    low = 0
    for high in (*_LENGTHS, int(max(tokens.max(), _LENGTHS[-1])) + 1):
        members = (tokens > low) & (tokens <= high)
        name = f"up to {high}" if low == 0 else f"over {low}" if high not in _LENGTHS else f"{low + 1} to {high}"
        if members.any():
            yield name, members
        low = high


@dataclass(frozen=True)
class WordWeight:
    """A word, what it adds on average to the logit of a label, and how often it occurs."""

    word: str
    weight: float
    count: int


def find_deciding_words(
    predicted: PredictedTexts, min_count: int = _MIN_COUNT, max_words: int = _MAX_WORDS
) -> dict[str, list[WordWeight]]:
    """Return the words that add most on average to the logit of each label, among those that occur often enough."""
    indices: dict[str, int] = {}
    rows = [indices.setdefault(word, len(indices)) for prediction in predicted.predictions for word in prediction.words]
    if not rows:
        return {label: [] for label in predicted.labels}
    evidence = np.concatenate([prediction.evidence for prediction in predicted.predictions])
    counts = np.bincount(rows)
    names, is_frequent = list(indices), counts >= min_count
    words = {}
    for label, column in zip(predicted.labels, evidence.T, strict=True):
        means = np.where(is_frequent, np.bincount(rows, weights=column) / counts, 0.0)
        order = [i for i in np.argsort(-means, kind="stable")[:max_words].tolist() if means[i] > 0]
        words[label] = [WordWeight(names[i], float(means[i]), int(counts[i])) for i in order]
    return words


def tabulate_words(words: dict[str, list[WordWeight]], min_count: int = _MIN_COUNT) -> Table:
    """Tabulate the deciding words of each label, the strongest first."""
    rows = tuple(
        (label, ", ".join(f"{weight.word} {weight.weight:+.2f}" for weight in weights) or "–")
        for label, weights in words.items()
    )
    note = f"Mean contribution to the label's logit, for words with at least {min_count} occurrences."
    return Table("Deciding words", ("label", "words"), rows, note)


def tabulate_mistakes(predicted: PredictedTexts, *, quoted: bool, count: int = 10) -> Table:
    """Tabulate the most confident mistakes, with the beginning of the text if it may be quoted, else with words."""
    labels = predicted.probabilities.argmax(axis=1)
    confidence = predicted.probabilities.max(axis=1)
    order = [i for i in np.argsort(-confidence, kind="stable").tolist() if not predicted.is_right[i]][:count]
    rows = tuple(
        (
            predicted.labels[predicted.targets[i]],
            predicted.labels[labels[i]],
            f"{confidence[i]:.3f}",
            str(predicted.predictions[i].tokens),
            _beginning(predicted.texts[i])
            if quoted
            else ", ".join(_strongest_words(predicted.predictions[i], int(labels[i]))),
        )
        for i in order
    )
    header = ("true", "predicted", "probability", "tokens", "text" if quoted else "misleading words")
    return Table("Most confident mistakes", header, rows)


def _beginning(text: str) -> str:
    line = " ".join(text.split()).replace("|", "/")
    return line if len(line) <= _MAX_QUOTED_CHARACTERS else line[:_MAX_QUOTED_CHARACTERS].rsplit(" ", 1)[0] + " …"


def _strongest_words(prediction: TextPrediction, label: int, count: int = 4) -> list[str]:
    order = np.argsort(-prediction.evidence[:, label], kind="stable").tolist()
    return list(dict.fromkeys(prediction.words[i] for i in order))[:count]


def compare_with_baseline(predicted: PredictedTexts, baseline: Baseline) -> tuple[Table, str]:
    """Tabulate the published model beside tf-idf on the same split, and say which is better."""
    count = len(predicted.targets)
    rows, accuracies = [], []
    models = (("this model (published)", predicted.probabilities), ("tf-idf", baseline.probabilities))
    for name, probabilities in models:
        scores = classification.classification_scores(probabilities, predicted.targets)
        low, high = classification.wilson_interval(scores["accuracy"], count)
        accuracies.append(scores["accuracy"])
        roc_auc = f"{scores['roc_auc']:.4f}" if "roc_auc" in scores else "–"
        interval = f"{low:.4f} to {high:.4f}"
        rows.append((name, f"{scores['accuracy']:.4f}", interval, roc_auc, f"{scores['cross_entropy']:.4f}"))
    header = ("", "accuracy", "95 %", "ROC AUC", "cross entropy")
    table = Table("Comparison with a baseline", header, tuple(rows), f"{baseline.description}.")
    model_accuracy, baseline_accuracy = accuracies
    baseline_is_right = baseline.probabilities.argmax(axis=1) == predicted.targets
    only_model = int((predicted.is_right & ~baseline_is_right).sum())
    only_baseline = int((~predicted.is_right & baseline_is_right).sum())
    verb = "beats" if model_accuracy > baseline_accuracy else "does not beat"
    verdict = (
        f"The model {verb} logistic regression on tf-idf on the same split: accuracy {model_accuracy:.4f} against "
        f"{baseline_accuracy:.4f}; {only_model} texts are right only with the model, {only_baseline} only with the "
        f"baseline (p = {_mcnemar_p_value(only_model, only_baseline):.2g})."
    )
    return table, verdict


def _mcnemar_p_value(first: int, second: int) -> float:
    """Return the probability of so unequal a split by chance: the exact two-sided test of McNemar (1947)."""
    total = first + second
    tail = sum(math.comb(total, k) for k in range(min(first, second) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**total)))


_TEMPLATES = (
    "The {} actor was in this film.",
    "The film is about the {} family.",
    "My {} neighbour told me about this movie.",
    "This {} woman is the director.",
    "It was written by this {} man.",
)
_IDENTITIES = (
    *("American", "British", "French", "German", "Mexican", "Chinese", "Indian", "Nigerian", "Turkish"),
    *("black", "white", "Asian", "Latino"),
    *("Christian", "Muslim", "Jewish", "Hindu", "Buddhist", "atheist"),
    *("gay", "straight", "lesbian", "transgender"),
    *("young", "old", "deaf", "blind", "disabled"),
)


def measure_identity_terms(task: Sentiment, run: Run, label: int) -> tuple[Table, str]:
    """Measure how far identity terms move the probability of a label in neutral sentences.

    Returns a table and a sentence. The sentences express no opinion, so any difference comes from the training texts.
    """
    texts = [template.format(identity) for identity in _IDENTITIES for template in _TEMPLATES]
    predictions = predict_texts(task, run, texts)
    probabilities = np.array([prediction.probabilities[label] for prediction in predictions])
    probabilities = probabilities.reshape(len(_IDENTITIES), len(_TEMPLATES))
    means = probabilities.mean(axis=1)
    order = np.argsort(-means, kind="stable").tolist()
    spread = probabilities.max(axis=0) - probabilities.min(axis=0)
    rows = tuple((_IDENTITIES[i], f"{means[i]:.3f}", f"{means[i] - means.mean():+.3f}") for i in order)
    name = task.labels[label]
    note = f"Mean over {len(_TEMPLATES)} neutral sentences such as “{_TEMPLATES[0].format('…')}”."
    header = ("identity term", f"probability of {name}", "difference from the mean")
    sentence = (
        f"In a neutral sentence, an identity term changes the probability of '{name}' by up to {spread.max():.2f}: "
        f"'{_IDENTITIES[order[0]]}' scores highest and '{_IDENTITIES[order[-1]]}' lowest."
    )
    return Table("Identity terms", header, rows, note), sentence


def describe_failures(predicted: PredictedTexts) -> tuple[str, ...]:
    """Return sentences on the hardest lengths and the label that is missed most."""
    groups = [
        (name, float(predicted.is_right[members].mean()), int(members.sum()))
        for name, members in _length_groups(predicted.tokens)
    ]
    large = [group for group in groups if group[2] >= _MIN_GROUP] or groups
    name, accuracy, count = min(large, key=lambda group: group[1])
    present = [i for i in range(len(predicted.labels)) if i in predicted.targets]
    recalls = [float(predicted.is_right[predicted.targets == i].mean()) for i in present]
    worst = int(np.argmin(recalls))
    label = predicted.labels[present[worst]]
    return (
        f"Texts of {name} tokens have the lowest accuracy: {accuracy:.3f} on {count:,} texts.",
        f"The label '{label}' has the lowest recall: {1 - recalls[worst]:.1%} of its texts are given another label.",
    )


def draw_figures(
    predicted: PredictedTexts, words: dict[str, list[WordWeight]], curves: dict[str, list[tuple[float, float, int]]]
) -> tuple[Figure, ...]:
    """Draw the confusion matrix, the reliability `curves`, the accuracy by length, and the deciding words."""
    matrix = classification.confusion_matrix(predicted.probabilities, predicted.targets, predicted.labels)
    lengths = []
    for name, members in _length_groups(predicted.tokens):
        accuracy = float(predicted.is_right[members].mean())
        lengths.append((name, accuracy, *classification.wilson_interval(accuracy, int(members.sum()))))
    figures = [
        Figure("Confusion matrix", plots.draw_confusion_matrix(matrix, predicted.labels)),
        Figure("Reliability", plots.draw_reliability(curves)),
        Figure("Accuracy by length", sentiment_plots.draw_accuracy_by_length(lengths)),
    ]
    shown = {label: [(word.word, word.weight) for word in weights] for label, weights in words.items() if weights}
    if shown:
        figures.append(Figure("Deciding words", sentiment_plots.draw_word_weights(shown)))
    return tuple(figures)
