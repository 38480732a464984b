"""Studies: comparisons of networks that publish a page instead of a model; found by file name, as recipes are.

    python -m training human_numbers --mirror ../shared/data --publish

writes a report to `--runs` and, with `--publish`, a page to `--cards`.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from training import studies
from training.core.command_line import Parser, Vocabulary
from training.core.config import Settings, add_options, overlay
from training.core.errors import CannotTrain
from training.core.files import require_writable, write_file
from training.core.provenance import code_version
from training.core.recipe import DataCard
from training.core.results import Figure, Table
from training.core.sources import Source
from training.data.download import Fetcher
from training.engine.runtime import Runtime, describe_hardware, start_runtime
from training.reporting import run_folder
from training.reporting.report import format_duration, render_template, reproduction_command


@dataclass(frozen=True)
class StudyResult:
    """The result of a study: tables, notes on what they show, and figures for the report.

    `seconds` is the training time, including that of a run that was interrupted; 0: the duration of this process.
    """

    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class StudyContext:
    """What a study needs to run.

    Attributes:
        data: the folder that was downloaded.
        folder: the run folder, for checkpoints; training resumes from those that exist.
        options: the study's own options.
        settings: the settings; a study uses only seed, seeds, device and threads.
        log: prints a line.
    """

    data: Path
    folder: Path
    options: Any
    settings: Settings
    runtime: Runtime
    log: Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """A comparison on a named data set.

    Attributes:
        expected: the result and the training time to expect, in words.
        settings: the default settings.
        options: a frozen dataclass of the study's own options, with their defaults.
        compare: trains and compares the networks.
    """

    name: str
    title: str
    summary: str
    expected: str
    source: Source
    data: DataCard
    settings: Settings
    options: Any
    compare: Callable[[StudyContext], StudyResult]


def study_names() -> tuple[str, ...]:
    """Return the names of the files in training/studies/."""
    return tuple(sorted(module.name for module in iter_modules(studies.__path__) if not module.name.startswith("_")))


def load_study(name: str) -> Study:
    """Import the study of this name, which is also its file's."""
    study: Study = import_module(f"training.studies.{name}").STUDY
    return study


def run_study(study: Study, options: list[str]) -> None:
    """Run a study with these command-line options. Raises CannotTrain."""
    parser = _parser(study)
    words, notes = Vocabulary(study.name, parser.option_names).rewrite(options)
    arguments = parser.parse_args(words)
    for note in notes:
        print(note)
    given = vars(arguments)
    settings, study_options = overlay(study.settings, given), overlay(study.options, given)
    fetcher = Fetcher(Path(arguments.data_dir), arguments.mirror)
    with start_runtime(settings) as runtime:
        if runtime.world_size > 1:
            raise CannotTrain("A study runs in one process: start it without torchrun.")
        require_writable(Path(arguments.runs), "--runs")
        if arguments.publish:
            require_writable(Path(arguments.cards), "--cards")
        data = fetcher.fetch(study.source)
        print(f"{study.name}: {study.summary}", flush=True)
        fingerprint = _fingerprint(study, settings, study_options, runtime, fetcher.sha256(study.source))
        folder = run_folder.find_or_create(Path(arguments.runs) / study.name, fingerprint, arguments.resume)
        with run_folder.lock(folder):
            started = time.monotonic()
            context = StudyContext(data, folder, study_options, settings, runtime, lambda text: print(text, flush=True))
            result = study.compare(context)
            seconds = result.seconds or time.monotonic() - started
            result = replace(
                result,
                notes=(
                    *result.notes,
                    f"Training time: {format_duration(seconds / 60)} on {describe_hardware(runtime)}.",
                ),
            )
            _report_and_publish(study, result, folder, arguments, _command(study, settings, study_options))


def _report_and_publish(
    study: Study, result: StudyResult, folder: Path, arguments: argparse.Namespace, command: str
) -> None:
    context = {
        "study": study,
        "result": result,
        "command": command,
        "code": run_folder.read_code_version(folder),
        "current_code": code_version(),
    }
    write_file(folder / "index.html", render_template("study.html.jinja", context))
    run_folder.mark_done(folder, {"study": study.name})
    for note in result.notes:
        print(note)
    print(f"Report: {folder / 'index.html'}")
    if arguments.publish:
        card = Path(arguments.cards) / f"{study.name}.md"
        card.parent.mkdir(parents=True, exist_ok=True)
        write_file(card, render_template("study.md.jinja", context) + "\n")
        print(f"Published: {card}")


def _fingerprint(study: Study, settings: Settings, options: Any, runtime: Runtime, sha256: str) -> dict[str, Any]:
    """The values that must be equal for a run to be resumed."""
    values = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in (asdict(settings) | asdict(options)).items()
        if name not in run_folder.SETTINGS_WITHOUT_EFFECT
    }
    return {"study": study.name, "device": runtime.device.type, "data": sha256, **values}


def _command(study: Study, settings: Settings, options: Any) -> str:
    values, defaults = asdict(settings) | asdict(options), asdict(study.settings) | asdict(study.options)
    relevant = {name: value for name, value in values.items() if name not in run_folder.SETTINGS_WITHOUT_EFFECT}
    return reproduction_command(study.name, relevant, defaults, None)


def _parser(study: Study) -> Parser:
    parser = Parser(
        prog=f"python -m training {study.name}",
        usage="%(prog)s [options]",
        description=f"{study.summary}\n\nExpect {study.expected}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_argument_group("actions")
    actions.add_argument("--publish", action="store_true", help="write the page to --cards")
    actions.add_argument(
        "--fresh",
        dest="resume",
        action="store_const",
        const="never",
        default="auto",
        help="start a new run, even if an unfinished one could be resumed",
    )
    paths = parser.add_argument_group("paths")
    for flag, default, text in (
        ("--data-dir", os.environ.get("SEVENFOLD_DATA", ".data"), "folder for downloaded data"),
        ("--mirror", os.environ.get("SEVENFOLD_MIRROR", ""), "folder or address to try before the official one"),
        ("--runs", "runs", "folder for checkpoints and reports"),
        ("--cards", "docs/studies", "folder for published pages"),
    ):
        paths.add_argument(flag, default=default, metavar="DIR", help=f"{text} (default: {default or 'none'})")
    add_options(parser, study.settings, "training")
    add_options(parser, study.options, "this study")
    return parser
