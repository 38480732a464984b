"""General texts for a language model to start with."""

import re
from pathlib import Path

from tasks._characters import clean_text
from training.core.errors import CannotTrain
from training.core.sources import Archive, Source, SourceFetcher

_WIKITEXT_2 = Source(
    name="wikitext-2",
    official=Archive("https://wikitext.smerity.com/wikitext-2-v1.zip"),
    mirrored=Archive(
        "text/wikitext-2_valid_test.tgz", "f7b1628eb995aa8fa115de73938757ebbe7f438b869b86db9375cc9425ace154", 783_962
    ),
    contains=("wiki.valid.tokens",),
    alternative="train on the texts of the data alone, without --corpus",
)
_CORPORA = {"wikitext-2": _WIKITEXT_2}
_HEADING = re.compile(r"^ = [^=].* = $")


def corpus_names() -> tuple[str, ...]:
    """Return the names of all corpora."""
    return tuple(_CORPORA)


def load_corpus(name: str, fetcher: SourceFetcher) -> tuple[str, ...]:
    """Return the articles of all files of a corpus, or none if it cannot be downloaded."""
    try:
        folder = fetcher.fetch(_CORPORA[name])
    except CannotTrain as error:
        fetcher.log(f"The language model is trained without {name}: {error}")
        return ()
    return tuple(text for path in sorted(folder.rglob("wiki.*.tokens")) for text in read_articles(path))


def read_articles(path: Path) -> list[str]:
    """Read the articles of a WikiText file, undo its tokenization and clean the characters."""
    articles: list[list[str]] = []
    for line in path.read_text("utf-8").splitlines():
        if _HEADING.match(line):
            articles.append([])
        elif line.strip() and articles and not line.startswith(" ="):
            articles[-1].append(_detokenize(line.strip()))
    return [clean_text("\n".join(lines)).text for lines in articles if lines]


def _detokenize(line: str) -> str:
    """Remove the spaces and the `@-@` that separate tokens."""
    line = re.sub(r" @([-,.])@ ", r"\1", line).replace("<unk>", "something")
    line = re.sub(r" ([.,;:!?)\]']|'s|n't)", r"\1", line)
    return re.sub(r"([(\[]) ", r"\1", line)
