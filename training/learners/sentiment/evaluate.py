"""Evaluation of a text classifier: accuracy by length, deciding words, mistakes, a baseline, and identity terms.

Texts are predicted through the task, as the service does it: long texts in parts, short texts tempered, and words
joined from their tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.contract import Arrays, Run, Samples
from tasks.sentiment import Sentiment, TokenizedText, sum_word_evidence, temper
from training.core.results import Comparison, Figure, SampleScores, Table
from training.evaluation import classification
from training.evaluation.comparison import compare_means
from training.learners.sentiment import plots as sentiment_plots
from training.learners.sentiment.tfidf_baseline import Baseline
from training.reporting import plots

FloatArray = NDArray[np.floating]
Targets = NDArray[np.integer]

_LENGTHS = (64, 128, 256, 512, 1024)
_MIN_COUNT = 20
_MAX_WORDS = 20
_MIN_GROUP = 50
_MIN_WEIGHT = 0.005
"""A smaller contribution to a logit, which would be shown as 0.00, decides nothing."""
_MIN_SPREAD = 0.005
"""A smaller difference between identity terms is not worth a sentence."""
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
    split, count = sum(prediction.parts > 1 for prediction in predicted.predictions), len(predicted.texts)
    note = f"Read in parts: {split:,} of {count:,} texts." if split else ""
    return Table("By length", ("tokens", "count", "accuracy", "95 %", "mean confidence"), tuple(rows), note)


def _length_groups(tokens: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    low = -1
    for high in (*_LENGTHS, int(max(tokens.max(), _LENGTHS[-1])) + 1):
        members = (tokens > low) & (tokens <= high)
        name = f"up to {high}" if low < 0 else f"over {low}" if high not in _LENGTHS else f"{low + 1} to {high}"
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
        order = [i for i in np.argsort(-means, kind="stable")[:max_words].tolist() if means[i] >= _MIN_WEIGHT]
        words[label] = [WordWeight(names[i], float(means[i]), int(counts[i])) for i in order]
    return words


def tabulate_words(words: dict[str, list[WordWeight]], min_count: int = _MIN_COUNT) -> Table:
    """Tabulate the deciding words of each label, the strongest first."""
    rows = tuple(
        (label, ", ".join(f"{weight.word} {weight.weight:+.2f}" for weight in weights) or "–")
        for label, weights in words.items()
    )
    note = (
        f"Mean contribution to the label's logit, for words with at least {min_count} occurrences."
        if any(words.values())
        else f"No word that adds to a label occurs {min_count} times."
    )
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
    note = "" if rows else "No validation text was given another label than its own."
    return Table("Most confident mistakes", header, rows, note)


def _beginning(text: str) -> str:
    line = " ".join(text.split()).replace("|", "/")
    return line if len(line) <= _MAX_QUOTED_CHARACTERS else line[:_MAX_QUOTED_CHARACTERS].rsplit(" ", 1)[0] + " …"


def _strongest_words(prediction: TextPrediction, label: int, count: int = 4) -> list[str]:
    order = np.argsort(-prediction.evidence[:, label], kind="stable").tolist()
    return list(dict.fromkeys(prediction.words[i] for i in order))[:count]


def accuracy_scores(predicted: PredictedTexts, groups: NDArray[np.integer]) -> SampleScores:
    """Return whether the label of each text is right; `groups` numbers the groups of texts that belong together."""
    is_right = predicted.is_right.astype(np.float64)
    if len(np.unique(groups)) == len(groups):
        return SampleScores("accuracy", is_right, "validation texts")
    return SampleScores("accuracy", is_right, "groups of validation texts", groups=groups)


def compare_with_baselines(
    predicted: PredictedTexts, scores: SampleScores, baseline: Baseline, most_frequent: int
) -> tuple[Comparison, ...]:
    """Compare the accuracy with that of the most frequent label of the training texts, and of tf-idf."""
    targets = predicted.targets
    constant = f"always predicting '{predicted.labels[most_frequent]}'"
    baseline_is_right = baseline.probabilities.argmax(axis=1) == targets
    return (
        compare_means(scores, constant, (targets == most_frequent).astype(np.float64), is_constant=True),
        compare_means(scores, "logistic regression on tf-idf", baseline_is_right.astype(np.float64)),
    )


def tabulate_baseline(predicted: PredictedTexts, baseline: Baseline) -> Table:
    """Tabulate the published model beside tf-idf on the same split."""
    count = len(predicted.targets)
    rows = []
    models = (("this model (published)", predicted.probabilities), ("tf-idf", baseline.probabilities))
    for name, probabilities in models:
        scores = classification.classification_scores(probabilities, predicted.targets)
        low, high = classification.wilson_interval(scores["accuracy"], count)
        roc_auc = f"{scores['roc_auc']:.4f}" if "roc_auc" in scores else "–"
        interval = f"{low:.4f} to {high:.4f}"
        rows.append((name, f"{scores['accuracy']:.4f}", interval, roc_auc, f"{scores['cross_entropy']:.4f}"))
    header = ("", "accuracy", "95 %", "ROC AUC", "cross entropy")
    baseline_is_right = baseline.probabilities.argmax(axis=1) == predicted.targets
    only_model = int((predicted.is_right & ~baseline_is_right).sum())
    only_baseline = int((~predicted.is_right & baseline_is_right).sum())
    note = (
        f"{baseline.description}. Of {count:,} texts, {only_model:,} are right only with the model, {only_baseline:,} "
        "only with the baseline."
    )
    return Table("Comparison with a baseline", header, tuple(rows), note)


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

    Returns a table, and a sentence, which is empty if they hardly move it. The sentences express no opinion, so any
    difference comes from the training texts.
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
    note = f"Mean over {len(_TEMPLATES)} neutral English sentences such as “{_TEMPLATES[0].format('…')}”."
    header = ("identity term", f"probability of {name}", "difference from the mean")
    sentence = (
        f"In a neutral English sentence, an identity term changes the probability of '{name}' by up to "
        f"{spread.max():.2f}: '{_IDENTITIES[order[0]]}' scores highest and '{_IDENTITIES[order[-1]]}' lowest."
    )
    return Table("Identity terms", header, rows, note), sentence if spread.max() >= _MIN_SPREAD else ""


def describe_failures(predicted: PredictedTexts) -> tuple[str, ...]:
    """Return sentences on the hardest lengths and the label that is missed most, if any is harder than others."""
    groups = [
        (name, int(predicted.is_right[members].sum()), int(members.sum()))
        for name, members in _length_groups(predicted.tokens)
    ]
    labels = [
        (
            predicted.labels[i],
            int(predicted.is_right[predicted.targets == i].sum()),
            int((predicted.targets == i).sum()),
        )
        for i in range(len(predicted.labels))
        if i in predicted.targets
    ]
    sentences = []
    if worst := _find_worst([group for group in groups if group[2] >= _MIN_GROUP] or groups):
        name, right, count = worst
        sentences.append(
            f"Texts of {name} tokens have the lowest accuracy: {right / count:.3f}, {right:,} of {count:,} texts."
        )
    if worst := _find_worst(labels):
        name, right, count = worst
        sentences.append(
            f"The label '{name}' has the lowest recall: of {count:,} texts, {count - right:,} are given another label."
        )
    return tuple(sentences)


def _find_worst(groups: Sequence[tuple[str, int, int]]) -> tuple[str, int, int] | None:
    """Return the group with the smallest fraction of right answers; None if no other has a larger one.

    A group is its name, how many of its answers are right, and how many there are.
    """
    fractions = [right / count for _, right, count in groups]
    return groups[int(np.argmin(fractions))] if len(set(fractions)) > 1 else None


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
