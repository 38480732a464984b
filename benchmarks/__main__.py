"""`python -m benchmarks`: every claim of speed, measured as a ratio in one run, as a table and as a JSON file."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import where
from benchmarks.serving import measure_serving
from benchmarks.stages import measure_stages, stages_table
from benchmarks.startup import measure_startup, startup_table


def main() -> int:
    """Measures, prints and writes; exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "startup", "serving", "stages", "training"), default="all")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each load; default: 5")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each, of which the median counts; default: 3")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="of the models, for serving; default: all")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the JSON files")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    if options.what in ("all", "startup"):
        found = measure_startup(options.models, repeats=options.repeats)
        _write(options.results / "startup.json", found)
        print(startup_table(found))
    if options.what in ("all", "serving"):
        names = options.only or tuple(
            sorted({path.parents[1].name for path in options.models.glob("*/*/manifest.json")})
        )
        found = measure_serving(options.models, names, seconds=options.seconds, repeats=options.repeats)
        _write(options.results / "serving.json", found)
        print(serving_table(found))
    if options.what in ("all", "stages"):
        found = measure_stages(options.models)
        _write(options.results / "stages.json", found)
        print(stages_table(found))
    if options.what in ("all", "training"):
        # Not at the top: measuring the service needs no torch.
        from benchmarks.training import measure_training, training_table

        found = measure_training(repeats=options.repeats)
        _write(options.results / "training.json", found)
        print(training_table(found))
    return 0


def serving_table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| model | connections | service, 1/s | plain, 1/s | service ÷ plain | service ÷ ceiling | p50, ms | p99, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['connections']} | {row['service']['per_second']:.0f} | "
        f"{row['plain']['per_second']:.0f} | {row['to_plain']:.2f} | {row['to_ceiling']:.2f} | "
        f"{row['service']['p50_ms']:.1f} | {row['service']['p99_ms']:.1f} |"
        for row in found["rows"]
    ]
    for name, bare in found["bare"].items():
        lines.append(
            f"\n{name}, in process: decode {bare['decode_s'] * 1e3:.2f} ms, graph alone {bare['alone_s'] * 1e3:.2f} "
            f"ms, in the best batch {bare['in_best_batch_s'] * 1e3:.3f} ms each; ceiling "
            f"{bare['ceiling_per_second']:.0f} 1/s."
        )
    return "\n".join(lines)


def _write(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps({"measured": where()} | found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
