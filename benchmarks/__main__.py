"""`python -m benchmarks`: measure the project's claims about speed, as ratios in one run."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.against import compare_checkouts, comparison_table
from benchmarks.large_images import large_images_table, measure_large_images
from benchmarks.machine import describe_machine
from benchmarks.processes import measure_processes, processes_table
from benchmarks.serving import measure_serving, serving_table
from benchmarks.stages import measure_stages, stages_table
from benchmarks.startup import measure_startup, startup_table


def main() -> int:
    """Measure, print tables and write JSON files."""
    options = _options()
    if options.against is not None:
        rows = compare_checkouts(options.models, options.against, seconds=options.seconds, repeats=options.repeats)
        print(comparison_table(rows))
        return 0
    options.results.mkdir(parents=True, exist_ok=True)
    if options.benchmark in ("all", "startup"):
        results = measure_startup(options.models, repeats=options.repeats)
        _write(options.results / "startup.json", results)
        print(startup_table(results))
    if options.benchmark in ("all", "serving"):
        names = options.only or tuple(
            sorted({path.parents[1].name for path in options.models.glob("*/*/manifest.json")})
        )
        results = measure_serving(options.models, names, seconds=options.seconds, repeats=options.repeats)
        _write(options.results / "serving.json", results)
        print(serving_table(results))
    if options.benchmark in ("all", "large-images"):
        results = measure_large_images(options.models, seconds=options.seconds, repeats=options.repeats)
        _write(options.results / "large_images.json", results)
        print(large_images_table(results))
    if options.benchmark in ("all", "stages"):
        results = measure_stages(options.models, options.only or ())
        _write(options.results / "stages.json", results)
        print(stages_table(results))
    if options.benchmark == "processes":  # It needs wrk.
        results = measure_processes(
            options.models, processes=options.processes, seconds=options.seconds, repeats=options.repeats
        )
        _write(options.results / "processes.json", results)
        print(processes_table(results))
    if options.benchmark in ("all", "training"):
        # Imported only here: measuring the service needs no torch.
        from benchmarks.training import measure_training, training_table

        results = measure_training(repeats=options.repeats)
        _write(options.results / "training.json", results)
        print(training_table(results))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "benchmark",
        nargs="?",
        choices=("all", "startup", "serving", "large-images", "stages", "processes", "training"),
        default="all",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each load; default: 5")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions, of which the median counts; default: 3")
    parser.add_argument("--processes", type=int, default=2, help="compared with one by 'processes'; default: 2")
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the models; default: models")
    parser.add_argument(
        "--only", nargs="+", metavar="MODEL", help="models to measure with 'serving' or 'stages'; default: all"
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder for the JSON files")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PATH",
        help="with 'serving': compare with the server of the checkout at PATH, and print the ratios of requests/s",
    )
    options = parser.parse_args()
    if options.against is not None and options.benchmark != "serving":
        parser.error("--against can only be used with 'serving'")
    if options.against is not None and not (options.against / "service" / "__main__.py").is_file():
        parser.error(f"{options.against} is not a checkout of this project: it has no service/__main__.py")
    return options


def _write(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps({"measured": describe_machine()} | results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
