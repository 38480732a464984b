"""Texts as tokens: sub-words by one tokenizer.json, which training writes and both sides read.

All that is done to a text lies in that file: Unicode to NFKC, HTML line breaks to line breaks, long repetitions
shortened, small letters, then byte-level pair encoding. Any text at all becomes tokens, and each token knows which
characters of the text it stands for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PADDING, BEGIN = 0, 1
"""Token numbers: what fills up a bucket, and what every text begins with."""
_SPECIAL = ("[PAD]", "[BEGIN]")


@dataclass(frozen=True)
class Encoded:
    """A text in tokens, the first of which is BEGIN.

    Attributes:
        tokens: int64 (n,), n ≥ 1.
        spans: for each token, where in the text its characters begin and end, in code points; (0, 0) for BEGIN.
    """

    tokens: NDArray[np.int64]
    spans: tuple[tuple[int, int], ...]


def untrained() -> Tokenizer:
    """A tokenizer with this project's rules that has seen no text yet."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"<br\s*/?>"), "\n"),
            normalizers.NFKC(),
            normalizers.Lowercase(),
            # "soooooo" is "sooo", and a line of dashes three of them.
            normalizers.Replace(Regex(r"(?<=(.)\1\1)\1+"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def trained(texts: Iterable[str], *, size: int, least: int = 5) -> str:
    """The tokenizer.json learnt from these texts: at most `size` tokens, each pair merged seen `least` times."""
    tokenizer = untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=least,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    text: str = tokenizer.to_str()
    return text


@lru_cache(maxsize=32)
def tokenizer_from(text: str) -> Tokenizer:
    """The tokenizer that a tokenizer.json describes; kept, since reading one takes milliseconds.

    Who writes [PAD] in a text gets those five characters, and no padding.
    """
    tokenizer: Tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Encoded:
    """One text in tokens."""
    found = tokenizer.encode(text, add_special_tokens=False)
    tokens = np.array([BEGIN, *found.ids], np.int64)
    return Encoded(tokens, ((0, 0), *found.offsets))


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """The tokens of many texts, each with BEGIN first: what training reads."""
    return [
        np.array([BEGIN, *found.ids], np.int32)
        for start in range(0, len(texts), 1000)
        for found in tokenizer.encode_batch_fast(list(texts[start : start + 1000]), add_special_tokens=False)
    ]


def padded(parts: Sequence[NDArray[np.integer]], length: int) -> NDArray[np.int64]:
    """The parts as rows of one array, int64 (n, length), filled up with PADDING on the right."""
    rows = np.full((len(parts), length), PADDING, np.int64)
    for row, part in zip(rows, parts, strict=True):
        row[: len(part)] = part
    return rows
