"""Unigram and bigram language models, as baselines for the neural one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.core.results import Table

Tokens = NDArray[np.integer]
FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class LanguageModelScores:
    """How well the next token is predicted: the perplexity per token, and the accuracy of the most likely token."""

    perplexity: float
    accuracy: float


def score_unigram(train: Tokens, valid: Tokens, vocabulary: int) -> LanguageModelScores:
    """Score a unigram model with add-one smoothing; tokens are (n,)."""
    counts = np.bincount(train, minlength=vocabulary) + 1.0
    probabilities = counts / counts.sum()
    return _scores(probabilities[valid[1:]], valid[1:] == int(counts.argmax()))


def score_bigram(train: Tokens, valid: Tokens, vocabulary: int) -> LanguageModelScores:
    """Score an interpolated Kneser-Ney bigram model (Chen and Goodman 1999); tokens are (n,).

    Counts are discounted by the estimate of Ney, Essen and Kneser. The probability that this frees is distributed in
    proportion to how many different tokens each token follows, plus one.
    """
    pairs, counts = np.unique(_pairs(train, vocabulary), return_counts=True)
    previous, following = np.divmod(pairs, vocabulary)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    continuations = np.bincount(following, minlength=vocabulary) + 1.0
    backoff = continuations / continuations.sum()
    totals = np.bincount(previous, weights=counts, minlength=vocabulary)
    kinds = np.bincount(previous, minlength=vocabulary)
    freed = np.where(totals > 0, discount * kinds / np.maximum(totals, 1), 1.0)
    seen = (counts - discount) / totals[previous] + freed[previous] * backoff[following]
    context, target = valid[:-1], valid[1:]
    valid_pairs = _pairs(valid, vocabulary)
    places = np.minimum(np.searchsorted(pairs, valid_pairs), len(pairs) - 1)
    probabilities = np.where(pairs[places] == valid_pairs, seen[places], freed[context] * backoff[target])
    best = _most_likely(previous, following, seen, freed * backoff.max(), int(backoff.argmax()))
    return _scores(probabilities, best[context] == target)


def _pairs(tokens: Tokens, vocabulary: int) -> NDArray[np.int64]:
    pairs: NDArray[np.int64] = tokens[:-1].astype(np.int64) * vocabulary + tokens[1:]
    return pairs


def _most_likely(
    previous: Tokens, following: Tokens, seen: FloatArray, unseen: FloatArray, most_common: int
) -> NDArray[np.int64]:
    """Return the most likely token after each token.

    That is the best of the pairs (`previous`, `following`) by their probabilities `seen`, or the token `most_common`,
    whose probability after each token is `unseen`.
    """
    best, score = np.full(len(unseen), most_common, np.int64), unseen.copy()
    order = np.lexsort((seen, previous))
    is_last = np.append(previous[order][1:] != previous[order][:-1], True)
    contexts, pairs = previous[order][is_last], order[is_last]
    better = seen[pairs] > score[contexts]
    best[contexts[better]] = following[pairs[better]]
    return best


def _scores(probabilities: FloatArray, is_right: NDArray[np.bool_]) -> LanguageModelScores:
    return LanguageModelScores(float(np.exp(-np.log(probabilities).mean())), float(is_right.mean()))


def language_model_table(
    models: Mapping[str, LanguageModelScores], train: Sequence[Tokens], valid: Sequence[Tokens], vocabulary: int
) -> Table:
    """Tabulate language models beside both baselines, on the same tokens; the texts of each side are joined."""
    train_tokens, valid_tokens = np.concatenate(list(train)), np.concatenate(list(valid))
    rows = {
        **models,
        "bigram, Kneser-Ney": score_bigram(train_tokens, valid_tokens, vocabulary),
        "unigram": score_unigram(train_tokens, valid_tokens, vocabulary),
    }
    return Table(
        "Language model",
        ("", "perplexity per token", "next-token accuracy"),
        tuple((name, f"{scores.perplexity:.1f}", f"{scores.accuracy:.1%}") for name, scores in rows.items()),
        f"On the {len(valid_tokens):,} tokens of the validation texts, with a vocabulary of {vocabulary:,}. The "
        f"baselines are fitted on the {len(train_tokens):,} tokens of the training texts, which the language model was "
        "trained on too. Figures for different tokenizers cannot be compared.",
    )
