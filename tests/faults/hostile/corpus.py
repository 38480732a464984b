"""All hostile requests, by kind, and those that represent each kind."""

from collections.abc import Callable, Iterator, Mapping

from tests.faults.hostile.forms import forms
from tests.faults.hostile.heads import heads
from tests.faults.hostile.images import images
from tests.faults.hostile.json_bodies import json_bodies
from tests.faults.hostile.request import HostileRequest
from tests.faults.hostile.several import several_inputs
from tests.faults.hostile.texts import texts
from tests.faults.sample_requests import KnownModel

KINDS: Mapping[str, Callable[[Mapping[str, KnownModel]], Iterator[HostileRequest]]] = {
    "images": lambda known: images(),
    "json": json_bodies,
    "texts": lambda known: texts(),
    "forms": lambda known: forms(),
    "heads": heads,
    "several": several_inputs,
}
"""For each kind, the function that makes its requests to the shipped models."""

REPRESENTATIVES: Mapping[str, tuple[str, ...]] = {
    "images": (
        "BMP in run lengths, 25 MP in 3 kB",
        "JPEG of 1,000 scans that calls itself MPO",
        "PNG of 600,000 text chunks",
        "JPEG whose EXIF comes in 1.7 million segments",
        "PNG of 8,000 colour profiles of 1 MB each",
    ),
    "json": (
        "JSON: 6 million empty rows",
        "JSON: lists 190 deep, again and again",
        "table: a row with a field of 19 MB of lists",
        "CSV: 19 MB of line breaks",
        "CSV: a row, then 19 MB of line breaks",
    ),
    "texts": (
        "text: one letter and 96,000 combining marks to be sorted",
        "text: marks of descending classes",
        "text: letters in pairs",
    ),
    "forms": (
        "form: 280,000 parts",
        "form: beginnings of its boundary",
    ),
    "heads": (
        "query: 4,000 names",
        "compressed: gzip of 9 GB of spaces before a row",
        "sent: 3 million chunks of one byte",
        "sent: 9 MB of line breaks",
        "path: /openapi.json fifty times on one connection",
    ),
    "several": (
        "several: 15 photos and a BMP in run lengths",
        "several: 16 JPEGs of 26 scans of 49 MP",
        "several: 16 letters with 96,000 combining marks",
    ),
}
"""For each kind, the names of its best known requests, and of those that cost the most when nothing bounds them."""


def representatives(kind: str, known: Mapping[str, KnownModel]) -> list[HostileRequest]:
    """Return the requests that represent a kind, in the order of their names above."""
    requests = {request.name: request for request in KINDS[kind](known)}
    return [requests[name] for name in REPRESENTATIVES[kind]]
