"""What counting alone predicts of the next token: a unigram and a bigram, beside which a language model is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.core.results import Table

Tokens = NDArray[np.integer]


@dataclass(frozen=True)
class Predicted:
    """How well the next token is predicted: perplexity a token, and how often it was the likeliest."""

    perplexity: float
    accuracy: float


def unigram(train: Tokens, valid: Tokens, vocabulary: int) -> Predicted:
    """Each token as often as it was seen, and once more; what came before counts for nothing. Tokens (n,)."""
    counts = np.bincount(train, minlength=vocabulary) + 1.0
    shares = counts / counts.sum()
    return _predicted(shares[valid[1:]], valid[1:] == int(counts.argmax()))


def bigram(train: Tokens, valid: Tokens, vocabulary: int) -> Predicted:
    """Interpolated Kneser and Ney (Chen and Goodman 1999) after one token; tokens (n,).

    Counts are discounted by what Ney, Essen and Kneser estimate; what that leaves is shared out by how many different
    tokens each one was seen to follow, and once more.
    """
    pairs, counts = np.unique(_pairs(train, vocabulary), return_counts=True)
    before, after = np.divmod(pairs, vocabulary)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    follows = np.bincount(after, minlength=vocabulary) + 1.0
    spread = follows / follows.sum()
    totals = np.bincount(before, weights=counts, minlength=vocabulary)
    kinds = np.bincount(before, minlength=vocabulary)
    left = np.where(totals > 0, discount * kinds / np.maximum(totals, 1), 1.0)
    probabilities = (counts - discount) / totals[before] + left[before] * spread[after]
    context, following = valid[:-1], valid[1:]
    wanted = _pairs(valid, vocabulary)
    places = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    found = np.where(pairs[places] == wanted, probabilities[places], left[context] * spread[following])
    best = _likeliest(before, after, probabilities, left * spread.max(), int(spread.argmax()))
    return _predicted(found, best[context] == following)


def _pairs(tokens: Tokens, vocabulary: int) -> NDArray[np.int64]:
    found: NDArray[np.int64] = tokens[:-1].astype(np.int64) * vocabulary + tokens[1:]
    return found


def _likeliest(
    before: Tokens, after: Tokens, probabilities: NDArray[np.floating], unseen: NDArray[np.floating], most: int
) -> NDArray[np.int64]:
    """After each token, the likeliest one: of those seen there, or `most`, the one that follows most, at `unseen`."""
    best, score = np.full(len(unseen), most, np.int64), unseen.copy()
    order = np.lexsort((probabilities, before))
    last = np.append(before[order][1:] != before[order][:-1], True)
    rows, chosen = before[order][last], order[last]
    better = probabilities[chosen] > score[rows]
    best[rows[better]] = after[chosen[better]]
    return best


def _predicted(probabilities: NDArray[np.floating], right: NDArray[np.bool_]) -> Predicted:
    return Predicted(float(np.exp(-np.log(probabilities).mean())), float(right.mean()))


def language_table(
    models: Mapping[str, Predicted], train: Sequence[Tokens], valid: Sequence[Tokens], vocabulary: int
) -> Table:
    """Language models by name beside both, on the same tokens; the texts of each side are read one after the other."""
    known, new = np.concatenate(list(train)), np.concatenate(list(valid))
    rows = {
        **models,
        "bigram, Kneser and Ney": bigram(known, new, vocabulary),
        "unigram": unigram(known, new, vocabulary),
    }
    return Table(
        "The language model",
        ("", "perplexity a token", "next token right"),
        tuple((who, f"{each.perplexity:.1f}", f"{each.accuracy:.1%}") for who, each in rows.items()),
        f"On the {len(new):,} tokens of the validation texts, of {vocabulary:,} kinds; both counts are of the "
        f"same {len(known):,} tokens that the language model learnt its data's language from. Figures of another "
        "tokenizer cannot be compared.",
    )
