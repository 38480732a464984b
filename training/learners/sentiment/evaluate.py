"""What is known of a classifier of texts: by length, by the words that decide, where it errs, and whom it names.

All of it is found by way of the task, as the service answers: long texts in parts, and words joined from their tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.contract import Arrays, Run, Samples
from tasks.sentiment import Sentiment, TokenizedText, find_words, sum_word_evidence
from training.core.results import Figure, Table
from training.evaluation import classification
from training.learners.sentiment.tfidf_baseline import Baseline

Numbers = NDArray[np.floating]
Targets = NDArray[np.integer]

_LENGTHS = (64, 128, 256, 512, 1024)
_MIN_COUNT = 20
_MAX_WORDS = 20
_QUOTED = 160
"""Characters of a text that are shown of it."""
_BATCH = 32


@dataclass(frozen=True)
class Said:
    """What was said of one text.

    Attributes:
        probabilities: of each label, float64 (labels,).
        tokens, parts: how long the text is, and in how many parts it was read.
        words: its words, in small letters.
        evidence: what each of them added to each label's score, float64 (words, labels).
    """

    probabilities: Numbers
    tokens: int
    parts: int
    words: tuple[str, ...]
    evidence: Numbers


@dataclass(frozen=True)
class Judged:
    """What was said of the validation texts, and what is true of them."""

    labels: tuple[str, ...]
    texts: Sequence[str]
    targets: Targets
    said: Sequence[Said]

    @property
    def probabilities(self) -> Numbers:
        """float64 (texts, labels)."""
        return np.array([each.probabilities for each in self.said])

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the likeliest label is the true one."""
        found: NDArray[np.bool_] = self.probabilities.argmax(axis=1) == self.targets
        return found

    @property
    def tokens(self) -> NDArray[np.int64]:
        """How long the texts are."""
        return np.array([each.tokens for each in self.said], np.int64)


def runs(served: nn.Module, names: Sequence[str] = ("probabilities", "evidence")) -> Run:
    """Runs the module that is to be exported as the service runs its graph."""

    def run(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = served(*(torch.from_numpy(array) for array in arrays.values()))
        return {name: output.numpy() for name, output in zip(names, outputs, strict=True)}

    return run


def said_of(task: Sentiment, run: Run, texts: Sequence[str]) -> list[Said]:
    """What is said of each text; those of one bucket share batches."""
    waiting: dict[int, list[tuple[int, Samples]]] = {}
    found: dict[int, Said] = {}
    for i, text in enumerate(texts):
        samples = task.preprocess(text)
        batch = waiting.setdefault(samples.arrays["tokens"].shape[1], [])
        batch.append((i, samples))
        if sum(len(each) for _, each in batch) >= _BATCH:
            found.update(_answered(run, batch))
            batch.clear()
    for batch in waiting.values():
        found.update(_answered(run, batch))
    return [found[i] for i in range(len(texts))]


def _answered(run: Run, batch: Sequence[tuple[int, Samples]]) -> Iterator[tuple[int, Said]]:
    if not batch:
        return
    outputs = run({"tokens": np.concatenate([samples.arrays["tokens"] for _, samples in batch])})
    start = 0
    for i, samples in batch:
        rows = slice(start, start + len(samples))
        start = rows.stop
        yield i, _said(samples.context, outputs["probabilities"][rows], outputs["evidence"][rows])


def _said(tokenized: TokenizedText, probabilities: Numbers, evidence: Numbers) -> Said:
    shares = np.array(tokenized.counts, np.float64) / max(1, sum(tokenized.counts))
    of_tokens = np.concatenate(
        [share * part[1 : 1 + n] for share, part, n in zip(shares, evidence, tokenized.counts, strict=True)]
    )
    places = find_words(tokenized.text)
    columns = [sum_word_evidence(tokenized.spans, column, places) for column in of_tokens.T]
    words = tuple(tokenized.text[start:end].lower() for start, end in places)
    return Said(
        shares @ probabilities.astype(np.float64), sum(tokenized.counts), len(shares), words, np.stack(columns, 1)
    )


def length_table(judged: Judged) -> Table:
    """Accuracy by how long the texts are."""
    rows = []
    for name, members in _by_length(judged.tokens):
        right, count = judged.right[members], int(members.sum())
        low, high = classification.wilson_interval(float(right.mean()), count)
        sure = judged.probabilities[members].max(axis=1).mean()
        rows.append((name, f"{count:,}", f"{right.mean():.3f}", f"{low:.3f} to {high:.3f}", f"{sure:.3f}"))
    several = sum(each.parts > 1 for each in judged.said)
    note = f"{several:,} of the texts were read in parts." if several else ""
    return Table("By length", ("tokens", "n", "accuracy", "95 %", "mean confidence"), tuple(rows), note)


def _by_length(tokens: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    low = 0
    for high in (*_LENGTHS, int(max(tokens.max(), _LENGTHS[-1])) + 1):
        members = (tokens > low) & (tokens <= high)
        name = f"up to {high}" if low == 0 else f"over {low}" if high not in _LENGTHS else f"{low + 1} to {high}"
        if members.any():
            yield name, members
        low = high


@dataclass(frozen=True)
class Word:
    """A word, what it added on average to a label's score, and how often it was seen."""

    word: str
    weight: float
    count: int


def deciding_words(judged: Judged, least: int = _MIN_COUNT, most: int = _MAX_WORDS) -> dict[str, list[Word]]:
    """For each label, the words of at least `least` occurrences that on average add most to its score."""
    places: dict[str, int] = {}
    rows = [places.setdefault(word, len(places)) for each in judged.said for word in each.words]
    if not rows:
        return {label: [] for label in judged.labels}
    evidence = np.concatenate([each.evidence for each in judged.said])
    counts = np.bincount(rows)
    names, seen = list(places), counts >= least
    found = {}
    for label, column in zip(judged.labels, evidence.T, strict=True):
        means = np.where(seen, np.bincount(rows, weights=column) / counts, 0.0)
        order = [i for i in np.argsort(-means, kind="stable")[:most].tolist() if means[i] > 0]
        found[label] = [Word(names[i], float(means[i]), int(counts[i])) for i in order]
    return found


def words_table(words: dict[str, list[Word]], least: int = _MIN_COUNT) -> Table:
    """The words that decide for each label, the strongest first."""
    rows = tuple(
        (label, ", ".join(f"{each.word} {each.weight:+.2f}" for each in found) or "–") for label, found in words.items()
    )
    note = f"What a word of at least {least} occurrences adds on average to the label's score, in logits."
    return Table("The words that decide", ("label", "words"), rows, note)


def wrong_table(judged: Judged, *, quoted: bool, most: int = 10) -> Table:
    """The surest mistakes; where the texts may be passed on, how each begins, else the words that misled."""
    said = judged.probabilities.argmax(axis=1)
    sure = judged.probabilities.max(axis=1)
    order = [i for i in np.argsort(-sure, kind="stable").tolist() if not judged.right[i]][:most]
    rows = tuple(
        (
            judged.labels[judged.targets[i]],
            judged.labels[said[i]],
            f"{sure[i]:.3f}",
            str(judged.said[i].tokens),
            _beginning(judged.texts[i]) if quoted else ", ".join(_strongest(judged.said[i], int(said[i]))),
        )
        for i in order
    )
    header = ("is", "said", "probability", "tokens", "text" if quoted else "words that misled")
    return Table("The surest mistakes", header, rows)


def _beginning(text: str) -> str:
    plain = " ".join(text.split()).replace("|", "/")
    return plain if len(plain) <= _QUOTED else plain[:_QUOTED].rsplit(" ", 1)[0] + " …"


def _strongest(said: Said, label: int, most: int = 4) -> list[str]:
    order = np.argsort(-said.evidence[:, label], kind="stable").tolist()
    return list(dict.fromkeys(said.words[i] for i in order))[:most]


def against_baseline(judged: Judged, baseline: Baseline) -> tuple[Table, str]:
    """The network beside tf-idf on the same split, and a sentence on who wins."""
    count = len(judged.targets)
    rows, accuracies = [], []
    for name, probabilities in (("what is served", judged.probabilities), ("tf-idf", baseline.probabilities)):
        found = classification.classification_scores(probabilities, judged.targets)
        low, high = classification.wilson_interval(found["accuracy"], count)
        accuracies.append(found["accuracy"])
        more = f"{found['roc_auc']:.4f}" if "roc_auc" in found else "–"
        rows.append(
            (name, f"{found['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", more, f"{found['cross_entropy']:.4f}")
        )
    table = Table(
        "Beside a baseline", ("", "accuracy", "95 %", "ROC AUC", "cross entropy"), tuple(rows), f"{baseline.words}."
    )
    ours, theirs = accuracies
    only_ours = int((judged.right & (baseline.probabilities.argmax(axis=1) != judged.targets)).sum())
    only_theirs = int((~judged.right & (baseline.probabilities.argmax(axis=1) == judged.targets)).sum())
    verb = "beats" if ours > theirs else "does not beat"
    verdict = (
        f"What is served {verb} tf-idf with logistic regression on the same split: {ours:.4f} against {theirs:.4f}; "
        f"{only_ours} texts only it gets right, {only_theirs} only the baseline "
        f"(p = {_sign(only_ours, only_theirs):.2g})."
    )
    return table, verdict


def _sign(one: int, other: int) -> float:
    """How likely so unequal a split is by chance: the exact test of McNemar (1947), two-sided."""
    total = one + other
    tail = sum(math.comb(total, k) for k in range(min(one, other) + 1))
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


def identity_table(task: Sentiment, run: Run, label: int) -> tuple[Table, str]:
    """How far the probability of a label moves where one word says who somebody is; and a sentence on that.

    The sentences praise and condemn nothing: whatever the word adds, the network has from its texts.
    """
    texts = [template.format(identity) for identity in _IDENTITIES for template in _TEMPLATES]
    said = said_of(task, run, texts)
    scores = np.array([each.probabilities[label] for each in said]).reshape(len(_IDENTITIES), len(_TEMPLATES))
    means = scores.mean(axis=1)
    order = np.argsort(-means, kind="stable").tolist()
    reach = scores.max(axis=0) - scores.min(axis=0)
    rows = tuple((_IDENTITIES[i], f"{means[i]:.3f}", f"{means[i] - means.mean():+.3f}") for i in order)
    name = task.labels[label]
    note = (
        f"Mean over {len(_TEMPLATES)} sentences like “{_TEMPLATES[0].format('…')}”, which praise and condemn nothing."
    )
    table = Table("Who is named", ("in the sentence", f"probability of {name}", "against the mean"), rows, note)
    sentence = (
        f"In a neutral sentence, the word that says who somebody is moves the probability of '{name}' by up to "
        f"{reach.max():.2f}: '{_IDENTITIES[order[0]]}' scores highest and '{_IDENTITIES[order[-1]]}' lowest."
    )
    return table, sentence


def failures(judged: Judged) -> tuple[str, ...]:
    """Sentences on what it gets wrong: the worst lengths, and which label it misses more."""
    groups = [(name, float(judged.right[m].mean()), int(m.sum())) for name, m in _by_length(judged.tokens)]
    large = [group for group in groups if group[2] >= 50] or groups
    name, accuracy, count = min(large, key=lambda group: group[1])
    shares = [float(judged.right[judged.targets == i].mean()) for i in range(len(judged.labels)) if i in judged.targets]
    worst = int(np.argmin(shares))
    return (
        f"Texts of {name} tokens are the hardest: {accuracy:.3f} are right (n = {count:,}).",
        f"The label '{judged.labels[worst]}' is missed most: {1 - shares[worst]:.1%} of its texts are given another.",
    )


def views(judged: Judged, words: dict[str, list[Word]], curves: dict[str, Any], note: str) -> tuple[Figure, ...]:
    """The figures of the report: confusions, reliability, accuracy by length, and the words."""
    from training.learners.sentiment import plots as sentiment_plots
    from training.reporting import plots

    matrix = classification.confusion_matrix(judged.probabilities, judged.targets, judged.labels)
    lengths = [
        (
            name,
            float(judged.right[m].mean()),
            *classification.wilson_interval(float(judged.right[m].mean()), int(m.sum())),
        )
        for name, m in _by_length(judged.tokens)
    ]
    shown = {label: [(each.word, each.weight) for each in found] for label, found in words.items() if found}
    found = [
        Figure("Confusion matrix", plots.draw_confusion_matrix(matrix, judged.labels)),
        Figure("Reliability", plots.draw_reliability(curves), note),
        Figure("Accuracy by length", sentiment_plots.by_length(lengths)),
    ]
    return (*found, Figure("The words that decide", sentiment_plots.words(shown))) if shown else tuple(found)
