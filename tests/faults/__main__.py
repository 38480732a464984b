"""`python -m tests.faults`: makes every fault there is through real HTTP, and prints which promises hold.

The table goes into docs/reliability.md with --write; the exit status is 1 where a promise does not hold. Linux only.
"""

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import where
from tests.faults import (
    cancelled_clients,
    device_faults,
    isolation,
    overload,
    scheduling,
    shutdown,
    version_swap,
)
from tests.faults.report import Row, section, table, verdict, with_section
from tests.faults.sample_requests import known_models
from tests.faults.scenario import Run

SCENARIOS: Mapping[str, Callable[[Run], list[Row]]] = {
    "burst": scheduling.measure_burst,
    "first": scheduling.measure_first,
    "overlap": scheduling.measure_overlap,
    "isolation": isolation.measure,
    "leaving": cancelled_clients.measure,
    "memory": device_faults.measure_memory,
    "hang": device_faults.measure_hang,
    "lost": device_faults.measure_lost,
    "threads": device_faults.measure_threads,
    "overload": overload.measure,
    "swap": version_swap.measure_swap,
    "shadow": version_swap.measure_shadow,
    "sigterm": shutdown.measure_term,
    "sigkill": shutdown.measure_kill,
}
_SIDE_BY_SIDE = 3


def main(arguments: Sequence[str]) -> int:
    """Measures, prints and writes; 0 where every promise holds."""
    options = _options(arguments)
    if options.list:
        for name, measure in SCENARIOS.items():
            print(f"{name:10} {(measure.__doc__ or '').splitlines()[0]}")
        return 0
    # Told to stop, it ends by way of every `finally`, so that no server stays behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    began = time.monotonic()
    run = Run(options.models, known_models(options.models), options.short)
    names = options.only or list(SCENARIOS)
    # Side by side they are in each other's way: only where times are not judged.
    with ThreadPoolExecutor(_SIDE_BY_SIDE if run.short else 1) as pool:
        rows = [row for measured in pool.map(lambda name: _measured(name, run), names) for row in measured]
    found, seconds = where(), time.monotonic() - began
    print(table(rows))
    listed = [asdict(row) for row in rows]
    if options.results is not None:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        content = {"measured": found, "short": options.short, "seconds": seconds, "rows": listed}
        options.results.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if options.write is not None:
        document = options.write.read_text("utf-8")
        options.write.write_text(with_section(document, section(rows, found, seconds=seconds)), "utf-8")
    return verdict(rows, short=options.short)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="smaller counts, under a minute; times are not judged")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SCENARIOS, help="of the scenarios; default: all")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--results", type=Path, help="JSON file of the figures; default: in tests/faults")
    parser.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=Path("docs/reliability.md"),
        help="put the table into this document; default: docs/reliability.md",
    )
    options = parser.parse_args(arguments)
    if options.results is None and not options.short and not options.only:
        options.results = Path("tests/faults/results.json")
    if options.write is not None and (options.short or options.only):
        parser.error("only the whole of it is written into the document: leave --short and --only out")
    return options


def _measured(name: str, run: Run) -> list[Row]:
    """The rows of one scenario; one that breaks down is a row that does not hold, and the others go on."""
    began = time.monotonic()
    try:
        rows = SCENARIOS[name](run)
    except Exception as error:  # Whatever it was: told in the table, and in full on standard error.
        traceback.print_exc()
        rows = [
            Row(name, f"The scenario '{name}' can be measured", "–", f"{type(error).__name__}: {error}"[:200], False)
        ]
    print(
        f"{name}: {time.monotonic() - began:.0f} s, {sum(r.holds for r in rows)} of {len(rows)} hold", file=sys.stderr
    )
    for row in rows:
        if not row.holds:
            print(f"  does not hold: {row.promise}: {row.measured}", file=sys.stderr)
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
