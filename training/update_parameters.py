"""Publish a model of a recipe with parameters measured again: `python -m training.update_parameters models/imdb`.

Measures what the graph does not contain, with the published graph on the recipe's data, without training: the
temperatures of short texts (sentiment), the columns that may be omitted (tabular). The graph is copied unchanged.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tasks.contract import InvalidInput
from tasks.goldens import read_goldens
from tasks.manifest import MODEL, BrokenModel, Manifest, read_manifest, verify_files
from tasks.system_errors import describe_os_error, run_command_line
from training.core.command_line import Parser, add_data_folders
from training.core.errors import CannotTrain
from training.core.results import Remeasured
from training.data.download import Fetcher
from training.publishing.export import onnx_runner
from training.publishing.republish import last_version, republish
from training.reporting.report import render_template
from training.session import open_training_data


def main(arguments: Sequence[str]) -> int:
    """Run a command line; return the exit status."""
    parser = Parser(prog="python -m training.update_parameters", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model, with its versions, such as models/imdb")
    parser.add_argument("--note", default="", help="what has changed and why, for the card")
    add_data_folders(parser)
    try:
        options = parser.parse_args(arguments)
        folder = update_parameters(options.model, Fetcher(Path(options.data_dir), options.mirror), options.note)
    except (CannotTrain, BrokenModel, InvalidInput) as error:
        print(f"training.update_parameters: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"training.update_parameters: {describe_os_error(error)}", file=sys.stderr)
        return 2
    print(f"Published: {folder}")
    return 0


def update_parameters(model: Path, fetcher: Fetcher, note: str = "") -> Path:
    """Publish a version of the model with parameters measured on the data of its recipe; return its folder.

    Raises CannotTrain if no recipe has trained the model, or the data is not that of its training, and BrokenModel.
    """
    last = last_version(model)
    manifest = read_manifest(last)
    verify_files(last, manifest)
    task, goldens = manifest.load_task(last), [golden.request for golden in read_goldens(last)]
    session = open_training_data(manifest, fetcher)
    measured = session.learner.remeasure(task, onnx_runner(last / MODEL, task), goldens)

    def card_section(new: Manifest) -> str:
        return _card_section(last, manifest, new, measured, note)

    return republish(last, measured.task, [*goldens, *measured.requests], card_section, measured.metrics)


def _card_section(last: Path, old: Manifest, new: Manifest, measured: Remeasured, note: str) -> str:
    """Return the section of the card on what this version changes."""
    before = {metric.name: metric.value for metric in old.metrics}
    changed = [metric for metric in new.metrics if f"{metric.value:.4f}" != f"{before[metric.name]:.4f}"]
    context = {"last": last.name, "manifest": new, "measured": measured, "note": note}
    return render_template("update.md.jinja", {**context, "before": before, "changed": changed})


if __name__ == "__main__":
    sys.exit(run_command_line(main, sys.argv[1:]))
