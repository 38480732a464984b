"""The report of the harness: guarantee, requirement and measurement, as a table, as JSON, and in a document."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests.document import with_section as document_with_section

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
_HEADER = "| guarantee | required | measured | holds |\n|---|---|---|---|"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        scenario: the name of the scenario that measured it.
        guarantee: what is guaranteed.
        required: the limit that the measurement has to keep.
        measured: the measurement, for reading.
        holds: whether the limit was kept.
        timed: whether the result depends on the speed and the load of the machine.
        figures: the numbers behind `measured`.
    """

    scenario: str
    guarantee: str
    required: str
    measured: str
    holds: bool
    timed: bool = False
    figures: dict[str, Any] = field(default_factory=dict)


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the smallest value that at least this fraction of the values does not exceed; NaN if there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]


def median(values: Sequence[float]) -> float:
    """Return the median; NaN if there are no values."""
    return statistics.median(values) if values else math.nan


def ms(seconds: float) -> str:
    """Format seconds as milliseconds."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds * 1000:,.0f} ms"


def first_of(problems: Sequence[str]) -> str:
    """Format the first problem for a cell of the table; an empty string if there is none."""
    return f" (first: {problems[0][:160].replace('|', '/')})" if problems else ""


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown."""
    return "\n".join(
        [
            _HEADER,
            *(f"| {r.guarantee} | {r.required} | {r.measured} | {'yes' if r.holds else '**no**'} |" for r in rows),
        ]
    )


def exit_status(rows: Sequence[Row], *, short: bool) -> int:
    """Return 0 if every row holds. A short run is too short for timing: its timed rows are shown, not judged."""
    return int(any(not row.holds for row in rows if not (short and row.timed)))


def section(rows: Sequence[Row], machine: Mapping[str, Any], *, seconds: float) -> str:
    """Return the text between the marks of the document."""
    summary = (
        f"Measured on {machine['when'][:10]} at commit `{machine['commit']}`, {machine['cores']} cores of "
        f"{machine['processor']}, Python {machine['python']}, ONNX Runtime {machine['onnxruntime']}; "
        f"`make faults` took {seconds:.0f} s. {sum(row.holds for row in rows)} of {len(rows)} rows hold."
    )
    return f"{summary}\n\n{table(rows)}"


def section_from_results(results: Mapping[str, Any]) -> str:
    """Return the same text from a stored file of results."""
    return section([Row(**row) for row in results["rows"]], results["measured"], seconds=results["seconds"])


def with_section(document: str, text: str) -> str:
    """Return the document with `text` between its marks. Raises ValueError unless it has each mark exactly once."""
    return document_with_section(document, "faults", text)
