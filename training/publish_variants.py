"""Publish a model with variants of lower precision: `python -m training.publish_variants models/clothing`.

Makes graphs in 16-bit floating point and in 8-bit integers from the published graph, without training, and measures
each beside it on the data of its training: the model's main metric, size, and how long runs take. The next version has
the same graph, and the variants that lose little enough and, for CPUs, are faster; its card describes all of them.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tasks.manifest import MODEL, BrokenModel, Manifest, read_manifest, verify_files
from tasks.system_errors import describe_os_error, run_command_line
from training.core.command_line import Parser, add_data_folders
from training.core.errors import CannotTrain
from training.core.settings_file import read_settings_file
from training.data.download import Fetcher
from training.publishing.republish import last_version
from training.publishing.variants import (
    MAX_LOSS,
    PRECISIONS,
    MeasuredVariant,
    Precision,
    VariantMaker,
    publish_variants,
    variants_table,
)
from training.registry import recipe_for
from training.reporting.report import markdown_table, render_template
from training.reporting.run_folder import Plan
from training.session import open_training_data


def main(arguments: Sequence[str]) -> int:
    """Run a command line; return the exit status."""
    try:
        published = _run(_parser().parse_args(arguments))
    except (CannotTrain, BrokenModel) as error:
        print(f"training.publish_variants: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"training.publish_variants: {describe_os_error(error)}", file=sys.stderr)
        return 2
    if published is not None:
        print(f"Published: {published}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m training.publish_variants", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model, with its versions, such as models/clothing")
    parser.add_argument(
        "--precisions", default=",".join(PRECISIONS), metavar="LIST", help="which variants; default: %(default)s"
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        default=MAX_LOSS,
        metavar="POINTS",
        help="largest loss of a variant that is published, in points of the main metric; default: %(default)s",
    )
    parser.add_argument("--dry-run", action="store_true", help="make and measure the variants, and publish nothing")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings.json of the run, for a model of own data")
    parser.add_argument("--data", type=Path, metavar="PATH", help="the data of that run")
    add_data_folders(parser)
    return parser


def _run(options: argparse.Namespace) -> Path | None:
    """Make, measure and publish; return the new version's folder, or None after a dry run."""
    precisions = _precisions(options.precisions)
    if (options.config is None) != (options.data is None):
        raise CannotTrain("A model of own data needs both --config and --data.")
    last = last_version(options.model)
    manifest = read_manifest(last)
    verify_files(last, manifest)
    plan = _own_plan(manifest, options.config, options.data) if options.config else None
    fetcher = Fetcher(Path(options.data_dir), options.mirror)
    learner = open_training_data(manifest, fetcher, plan, options.data).learner
    with tempfile.TemporaryDirectory(prefix="variants-") as folder:
        maker = VariantMaker(last, manifest.load_task(last), learner, Path(folder), options.max_loss)
        variants = maker.make(precisions)
        print(markdown_table(variants_table((last / MODEL).stat().st_size, variants)))
        for variant in variants:
            print(f"{variant.precision}: {variant.method}")
        if options.dry_run:
            return None
        if all(variant.objections for variant in variants):
            raise CannotTrain("No variant is worth publishing; the table says why.")
        return publish_variants(last, variants, lambda new: _card_section(last, new, variants))


def _precisions(text: str) -> list[Precision]:
    """Return the precisions in a list separated by commas. Raises CannotTrain."""
    names = text.split(",")
    if set(names) - set(PRECISIONS):
        raise CannotTrain(f"--precisions {text}: name some of {', '.join(PRECISIONS)}, separated by commas.")
    return [precision for precision in PRECISIONS if precision in names]


def _own_plan(manifest: Manifest, config: Path, data: Path) -> Plan:
    """Return the plan of a run with the user's own data. Raises CannotTrain."""
    file = read_settings_file(config)
    if file.task != manifest.task:
        raise CannotTrain(f"{file.path} is of the task {file.task or 'unknown'}, the model of {manifest.task}.")
    recipe = recipe_for(manifest.task, manifest.name, data)
    settings, task_options = file.apply(recipe.settings, recipe.options)
    return Plan(recipe, settings, task_options, "")


def _card_section(last: Path, manifest: Manifest, variants: Sequence[MeasuredVariant]) -> str:
    table = variants_table((last / MODEL).stat().st_size, variants)
    context = {"last": last.name, "manifest": manifest, "table": table, "variants": variants}
    return render_template("variants.md.jinja", context)


if __name__ == "__main__":
    sys.exit(run_command_line(main, sys.argv[1:]))
