"""Traffic that a dashboard can show: all seven tasks, errors, overload, clients that hang up, versions that come."""

import io
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from loadtests.clients import ScheduledRequest
from tests.faults.published_versions import publish, same_graph
from tests.faults.sample_requests import (
    FaultyRequest,
    KnownModel,
    ValidRequest,
    disconnecting_requests,
    faulty_requests,
    known_models,
)
from tests.monitoring.queries import ROOT

MODELS = ("adult", "bikes", "camvid", "clothing", "faces", "imdb", "movielens", "restore")
"""A model of each of the seven tasks, and two of tabular."""
_VARIANTS = 10


def copy_models(folder: Path) -> dict[str, KnownModel]:
    """Copy the models into a folder, and return what a client knows of them."""
    for name in MODELS:
        shutil.copytree(ROOT / "models" / name, folder / name)
    return known_models(folder)


class Requests:
    """Requests to the models, made once for each seed."""

    def __init__(self, known: Mapping[str, KnownModel]) -> None:
        self.known = known
        self.valid: Callable[[str, int], ValidRequest] = cache(lambda name, seed: known[name].valid_request(seed))
        self.faulty: Sequence[FaultyRequest] = list(faulty_requests(known))

    def mixed(self, *, per_second: float, seconds: float, start_s: float = 0.0) -> list[ScheduledRequest]:
        """Schedule valid requests to all models in turn, at equal intervals."""
        count = round(per_second * seconds)
        return [
            ScheduledRequest(
                start_s + i / per_second, self.valid(MODELS[i % len(MODELS)], i // len(MODELS) % _VARIANTS).request, i
            )
            for i in range(count)
        ]

    def random(
        self, name: str, rate: Callable[[float], float], start_s: float, end_s: float, seed: int = 0
    ) -> list[ScheduledRequest]:
        """Schedule valid requests to a model as a Poisson process, whose rate depends on the time."""
        rng, scheduled, at_s = random.Random(f"{name} {seed}"), [], start_s
        while (at_s := at_s + rng.expovariate(max(rate(at_s), 0.01))) < end_s:
            scheduled.append(ScheduledRequest(at_s, self.valid(name, rng.randrange(_VARIANTS)).request, 0))
        return scheduled

    def errors(self, *, start_s: float = 0.0, interval_s: float = 0.1) -> list[ScheduledRequest]:
        """Schedule one request of each faulty kind, and clients that hang up."""
        hang_ups = disconnecting_requests([self.valid("camvid", 0)])
        return [
            ScheduledRequest(start_s + i * interval_s, faulty.request, i, hang_up=faulty.hang_up)
            for i, faulty in enumerate([*self.faulty, *hang_ups])
        ]

    def burst(self, name: str, count: int, *, at_s: float = 0.0, timeout_ms: int = 30_000) -> list[ScheduledRequest]:
        """Schedule many requests to a model at one time."""
        make, header = self.known[name].valid_request, str(timeout_ms)
        requests = [make(seed, X_Request_Timeout_Ms=header).request for seed in range(_VARIANTS)]
        return [ScheduledRequest(at_s, requests[i % _VARIANTS], i) for i in range(count)]

    def costly_file(self, *, at_s: float = 0.0) -> ScheduledRequest:
        """Schedule a file that decoders give up at first, and decode again among files of its kind."""
        file = io.BytesIO()
        Image.new("RGB", (5_000, 5_000), (120, 40, 40)).save(file, "PNG", compress_level=1)
        return ScheduledRequest(at_s, self.known["clothing"].request("image/png", file.getvalue()), 0)

    def publish_same_answers(self, models: Path, name: str) -> str:
        """Publish a version that answers as the current one does, and return its number."""
        return self._publish(models, name, broken=False)

    def publish_broken(self, models: Path, name: str) -> str:
        """Publish a version whose graph is damaged, and return its number."""
        return self._publish(models, name, broken=True)

    def _publish(self, models: Path, name: str, *, broken: bool) -> str:
        known = self.known[name]
        version = str(int(known.manifest.version) + 1)
        publish(models, known, version, same_graph(known.graph, "a copy"), broken=broken)
        return version
