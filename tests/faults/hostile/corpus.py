"""All hostile requests, by kind."""

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
