"""`python -m tests.faults`: inject faults over real HTTP and report which guarantees hold.

With --write, the table goes into docs/reliability.md. The exit status is 1 if a guarantee does not hold. Linux only.
"""

import argparse
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.machine import describe_machine
from tests.faults import (
    cancelled_clients,
    container_memory,
    device_faults,
    hostile_clients,
    isolation,
    memory_returns,
    models_come_and_go,
    overload,
    scheduling,
    shadow_evaluation,
    shutdown,
    version_swap,
)
from tests.faults.hostile.corpus import KINDS as HOSTILE_KINDS
from tests.faults.report import Row, exit_status, section_from_results, table, with_section
from tests.faults.sample_requests import known_models
from tests.faults.scenario import ScenarioContext

RESULTS, DOCUMENT = Path("tests/faults/results.json"), Path("docs/reliability.md")
_PARALLEL = 3
_SHARED_SERVERS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "all models": ((), ("--max-queue", "2000")),
    "batches": (("clothing", "restore"), (*cancelled_clients.FLAGS, "--max-batch", "4")),
    "device": (("clothing", "adult"), ("--hang-seconds", "3")),
    "hostile": (hostile_clients.MODELS, ()),
}
"""Models and flags of the servers that scenarios share in a short run; none named means all models."""


@dataclass(frozen=True)
class Scenario:
    """A scenario; `shared_server` is the one that it uses in a short run, None if it needs one of its own."""

    measure: Callable[[ScenarioContext], list[Row]]
    shared_server: str | None = None


SCENARIOS: Mapping[str, Scenario] = {
    "burst": Scenario(scheduling.measure_burst, "all models"),
    "first_request": Scenario(scheduling.measure_first_request, "all models"),
    "overlap": Scenario(scheduling.measure_overlap, "all models"),
    "isolation": Scenario(isolation.measure, "all models"),
    "cancellation": Scenario(cancelled_clients.measure, "batches"),
    "out_of_memory": Scenario(device_faults.measure_out_of_memory, "batches"),
    "device_hang": Scenario(device_faults.measure_hang, "device"),
    "device_lost": Scenario(device_faults.measure_lost, "device"),
    "thread_death": Scenario(device_faults.measure_thread_death),
    "overload": Scenario(overload.measure, "all models"),
    **{f"hostile_{kind}": Scenario(partial(hostile_clients.measure, kind), "hostile") for kind in HOSTILE_KINDS},
    "memory_returns": Scenario(memory_returns.measure, "hostile"),
    "container_memory": Scenario(container_memory.measure),
    "version_swap": Scenario(version_swap.measure),
    "models_come_and_go": Scenario(models_come_and_go.measure),
    "shadow": Scenario(shadow_evaluation.measure),
    "sigterm": Scenario(shutdown.measure_sigterm),
    "sigkill": Scenario(shutdown.measure_sigkill),
}
"""In the order in which they are measured; `device_lost` ends its server and is the last on it."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; return 0 if every guarantee holds."""
    options = _options(arguments)
    if options.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:18} {_summary(scenario)}")
        return 0
    if options.render:
        _write_document(DOCUMENT if options.write is None else options.write, RESULTS)
        return 0
    # SIGTERM ends the program through every `finally`, so that no server is left behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    started_at = time.monotonic()
    context = ScenarioContext(options.models, known_models(options.models), options.short, options.whole_corpus)
    rows = _measure_all(options.only or list(SCENARIOS), context)
    seconds = time.monotonic() - started_at
    print(table(rows))
    if options.results is not None:
        results = {"measured": describe_machine(), "short": options.short, "seconds": seconds}
        results["rows"] = [asdict(row) for row in rows]
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if options.write is not None:
        _write_document(options.write, options.results)
    return exit_status(rows, short=options.short)


def _summary(scenario: Scenario) -> str:
    measure = scenario.measure.func if isinstance(scenario.measure, partial) else scenario.measure
    return (measure.__doc__ or "").splitlines()[0]


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a quick run with smaller counts; timings are not judged")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=SCENARIOS, help="scenarios to run; default: all")
    parser.add_argument(
        "--whole-corpus",
        action="store_true",
        help="send all hostile requests, not a few of each kind; takes far longer",
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the models; default: models")
    parser.add_argument("--results", type=Path, help=f"JSON file for the figures of a full run; default: {RESULTS}")
    parser.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=DOCUMENT,
        help=f"write the table of a full run into this document; default: {DOCUMENT}",
    )
    parser.add_argument("--render", action="store_true", help=f"write the table from {RESULTS} without measuring")
    options = parser.parse_args(arguments)
    if options.results is None and not options.short and not options.only:
        options.results = RESULTS
    if options.write is not None and (options.short or options.only):
        parser.error("only a full run can be written into the document; omit --short and --only")
    return options


def _write_document(document: Path, results: Path) -> None:
    text = section_from_results(json.loads(results.read_text("utf-8")))
    document.write_text(with_section(document.read_text("utf-8"), text), "utf-8")


def _measure_all(names: Sequence[str], context: ScenarioContext) -> list[Row]:
    """Measure the scenarios one after the other; in a short run, which judges no times, several at once."""
    if not context.short:
        return [row for name in names for row in _measure(name, context)]
    groups = [[name for name in names if SCENARIOS[name].shared_server == server] for server in _SHARED_SERVERS]
    groups += [[name] for name in names if SCENARIOS[name].shared_server is None]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        rows = [
            row for measured in pool.map(partial(_measure_group, context), filter(None, groups)) for row in measured
        ]
    return sorted(rows, key=lambda row: names.index(row.scenario))


def _measure_group(context: ScenarioContext, names: Sequence[str]) -> list[Row]:
    """Measure scenarios one after the other on the server that they share, if any."""
    shared_server = SCENARIOS[names[0]].shared_server
    if shared_server is None:
        return [row for name in names for row in _measure(name, context)]
    models, flags = _SHARED_SERVERS[shared_server]
    with context.server(*models, flags=flags, faulty=True) as server:
        context = replace(context, shared=server)
        return [row for name in names for row in _measure(name, context)]


def _measure(name: str, context: ScenarioContext) -> list[Row]:
    """Return the rows of a scenario; if it raises an error, a row that does not hold, and the others go on."""
    started_at = time.monotonic()
    try:
        rows = SCENARIOS[name].measure(context)
    except Exception as error:  # Any error: in the table in short, on standard error in full.
        traceback.print_exc()
        problem = f"{type(error).__name__}: {error}"[:200]
        rows = [Row(name, f"The scenario '{name}' can be measured", "–", problem, False)]
    print(
        f"{name}: {time.monotonic() - started_at:.0f} s, {sum(r.holds for r in rows)} of {len(rows)} hold",
        file=sys.stderr,
    )
    for row in rows:
        if not row.holds:
            print(f"  does not hold: {row.guarantee}: {row.measured}", file=sys.stderr)
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
