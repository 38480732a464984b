"""Texts as tokens: sub-words from one tokenizer.json, which training writes and both training and service read.

Texts are cleaned first (`tasks/_characters.py`). The file contains the further steps: Unicode NFKC, line breaks of
HTML to newlines, shortening of long repetitions, lower case, then byte-level pair encoding. Any text can be tokenized,
and each token records which characters of the text it covers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PADDING, BEGIN = 0, 1
"""Token ids: padding up to a bucket's length, and the first token of every text."""
_SPECIAL = ("[PAD]", "[BEGIN]")


@dataclass(frozen=True)
class EncodedText:
    """A text as tokens, the first of which is BEGIN. Its arrays are made when they are asked for; its length is known.

    Attributes:
        encoding: the tokens without BEGIN, from the library.
    """

    encoding: Encoding

    def __len__(self) -> int:
        return 1 + len(self.encoding)

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        """The tokens, int64 (n,), n ≥ 1."""
        return np.array([BEGIN, *self.encoding.ids], np.int64)

    @cached_property
    def spans(self) -> NDArray[np.int64]:
        """The start and end of each token's characters in the text, in code points, int64 (n, 2); 0, 0 for BEGIN."""
        flat = chain((0, 0), chain.from_iterable(self.encoding.offsets))
        return np.fromiter(flat, np.int64, 2 * len(self)).reshape(-1, 2)


def untrained_tokenizer() -> Tokenizer:
    """Create a tokenizer with this project's rules and an empty vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"<br\s*/?>"), "\n"),
            normalizers.NFKC(),
            normalizers.Lowercase(),
            # "soooooo" becomes "sooo", and a line of dashes three dashes.
            normalizers.Replace(Regex(r"(?<=(.)\1\1)\1+"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_tokenizer(texts: Iterable[str], *, size: int, min_count: int = 5) -> str:
    """Train a tokenizer and return its tokenizer.json: at most `size` tokens, merging pairs seen `min_count` times."""
    tokenizer = untrained_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_count,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    text: str = tokenizer.to_str()
    return text


@lru_cache(maxsize=32)
def load_tokenizer(text: str) -> Tokenizer:
    """Load the tokenizer from the text of a tokenizer.json. Cached, since parsing takes milliseconds.

    "[PAD]" in a text is read as these five characters, not as padding.
    """
    tokenizer: Tokenizer = Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> EncodedText:
    """Tokenize one text, cleaned by `tasks._characters.clean_text`."""
    # Unlike `encode`, which does the same for one text, `encode_batch` releases the interpreter's lock.
    (encoding,) = tokenizer.encode_batch([text], add_special_tokens=False)
    return EncodedText(encoding)


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """Tokenize many texts for training, each with BEGIN first."""
    return [
        np.array([BEGIN, *encoding.ids], np.int32)
        for start in range(0, len(texts), 1000)
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + 1000]), add_special_tokens=False)
    ]


def pad_tokens(parts: Sequence[NDArray[np.integer]], length: int) -> NDArray[np.int64]:
    """Stack the parts as rows of one array, int64 (n, length), padded with PADDING on the right."""
    rows = np.full((len(parts), length), PADDING, np.int64)
    for row, part in zip(rows, parts, strict=True):
        row[: len(part)] = part
    return rows
