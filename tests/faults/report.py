"""What was promised, what was measured, and whether the one holds of the other: as a table, as JSON, in a document."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
_HEAD = "| promise | demanded | measured | holds |\n|---|---|---|---|"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        scenario: which of them measured it.
        promise: what is promised, in a few words.
        demanded: the figure that is to be reached.
        measured: the figure that was.
        holds: whether it was reached.
        timed: whether it depends on how fast the machine is and on who shares it.
        figures: what `measured` was made of.
    """

    scenario: str
    promise: str
    demanded: str
    measured: str
    holds: bool
    timed: bool = False
    figures: dict[str, Any] = field(default_factory=dict)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed; NaN where there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle value; NaN where there are none."""
    return statistics.median(values) if values else math.nan


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    return "\n".join(
        [_HEAD, *(f"| {r.promise} | {r.demanded} | {r.measured} | {'yes' if r.holds else '**no**'} |" for r in rows)]
    )


def verdict(rows: Sequence[Row], *, short: bool) -> int:
    """The exit status: 0 where every line holds. A short run is too short for times: there they are only shown."""
    return int(any(not row.holds for row in rows if not (short and row.timed)))


def section(rows: Sequence[Row], measured: dict[str, Any], *, seconds: float) -> str:
    """What stands between the marks of the document."""
    head = (
        f"Measured on {measured['when'][:10]} at commit `{measured['commit']}`, {measured['cores']} cores of "
        f"{measured['processor']}, Python {measured['python']}, ONNX Runtime {measured['onnxruntime']}; "
        f"`make faults` took {seconds:.0f} s. {sum(row.holds for row in rows)} of {len(rows)} lines hold."
    )
    return f"{head}\n\n{table(rows)}"


def with_section(document: str, text: str) -> str:
    """The document with `text` between its two marks. Raises ValueError where it has not exactly one of each."""
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise ValueError(f"The document has no place for the table: it needs the lines {BEGIN} and {END}, once each.")
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"
