"""The service of this checkout compared with that of another one, for a release: the ratio of requests per second.

The two servers run in turn (A B A B), with the same models and the same clients.
"""

import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import measure_load
from benchmarks.serving import example_request, newest_version, predict_path, start_service
from loadtests.clients import LoadProcess, prepare_request

_MODELS = ("clothing", "adult")
_CONNECTIONS = (1, 8)


@dataclass(frozen=True)
class Comparison:
    """Requests per second of both checkouts, one value a turn."""

    model: str
    connections: int
    this: list[float] = field(default_factory=list)
    other: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The ratio of the medians."""
        return statistics.median(self.this) / statistics.median(self.other)

    @property
    def ratios(self) -> list[float]:
        """The ratio of each pair of turns."""
        return [this / other for this, other in zip(self.this, self.other, strict=True)]


def compare_checkouts(models: Path, other: Path, *, seconds: float, repeats: int) -> list[Comparison]:
    """Measure both checkouts `repeats` times each, at 1 and 8 connections. Raises RuntimeError if a server fails."""
    comparisons = [Comparison(name, connections) for name in _MODELS for connections in _CONNECTIONS]
    with tempfile.TemporaryDirectory() as folder, LoadProcess() as process:
        subset = Path(folder)
        for name in _MODELS:
            (subset / name).symlink_to((models / name).resolve(), target_is_directory=True)
        for _ in range(repeats):
            for checkout in (None, other):
                with start_service(subset, checkout) as port:
                    for row in comparisons:
                        content_type, body = example_request(newest_version(models / row.model), row.model)
                        request = prepare_request(predict_path(row.model), content_type, body)
                        load = measure_load(process, port, request, connections=row.connections, seconds=seconds)
                        (row.this if checkout is None else row.other).append(load.per_second)
    return comparisons


def comparison_table(comparisons: list[Comparison]) -> str:
    """Return the comparison as Markdown."""
    lines = ["| model | connections | this, 1/s | other, 1/s | this ÷ other | turns |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row.model} | {row.connections} | {statistics.median(row.this):.0f} | {statistics.median(row.other):.0f} | "
        f"{row.ratio:.3f} | {min(row.ratios):.3f} to {max(row.ratios):.3f} |"
        for row in comparisons
    ]
    return "\n".join(lines)
