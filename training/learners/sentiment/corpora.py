"""Texts at large, for a language model to begin with."""

import re
from pathlib import Path

from training.core.errors import CannotTrain
from training.core.sources import Archive, Source, SourceFetcher

_WIKITEXT_2 = Source(
    name="wikitext-2",
    official=Archive("https://wikitext.smerity.com/wikitext-2-v1.zip"),
    mirrored=Archive(
        "text/wikitext-2_valid_test.tgz", "f7b1628eb995aa8fa115de73938757ebbe7f438b869b86db9375cc9425ace154", 783_962
    ),
    contains=("wiki.valid.tokens",),
)
_SOURCES = {"wikitext-2": _WIKITEXT_2}
_HEADING = re.compile(r"^ = [^=].* = $")


def corpus_names() -> tuple[str, ...]:
    """Those that can be asked for."""
    return tuple(_SOURCES)


def corpus(name: str, fetcher: SourceFetcher) -> tuple[str, ...]:
    """The articles of a corpus: all of its files, since nothing is judged on them; none where it cannot be had."""
    try:
        folder = fetcher.fetch(_SOURCES[name])
    except CannotTrain as error:
        fetcher.log(f"The language model goes without {name}: {error}")
        return ()
    return tuple(text for path in sorted(folder.rglob("wiki.*.tokens")) for text in articles(path))


def articles(path: Path) -> list[str]:
    """The articles of a WikiText file, in ordinary spelling: its tokens are set apart by spaces and `@-@`."""
    found: list[list[str]] = []
    for line in path.read_text("utf-8").splitlines():
        if _HEADING.match(line):
            found.append([])
        elif line.strip() and found and not line.startswith(" ="):
            found[-1].append(_joined(line.strip()))
    return ["\n".join(lines) for lines in found if lines]


def _joined(line: str) -> str:
    line = re.sub(r" @([-,.])@ ", r"\1", line).replace("<unk>", "something")
    line = re.sub(r" ([.,;:!?)\]']|'s|n't)", r"\1", line)
    return re.sub(r"([(\[]) ", r"\1", line)
