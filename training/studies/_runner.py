"""Studies: comparisons that train and print a table, and publish no model; found by file name, as recipes are.

    python -m training human_numbers --mirror ../shared/data --publish

writes a report into `--runs`, and with `--publish` a card into `--cards`, with the command that makes it again.
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
from training.core.config import Settings, add_options, overlay
from training.core.errors import CannotTrain
from training.core.provenance import code_version
from training.core.recipe import DataCard
from training.core.results import Figure, Table
from training.core.sources import Source
from training.data.download import Fetcher
from training.engine.runtime import Runtime, describe_hardware, start_runtime
from training.reporting import run_folder
from training.reporting.report import render_template, reproduction_command


@dataclass(frozen=True)
class StudyResult:
    """What came of a study: tables, sentences that say what to see in them, and figures for the report.

    `seconds` is what its trainings took, also those of a run that was broken off; 0: as long as this one ran.
    """

    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class StudyContext:
    """What a study works with.

    Attributes:
        data: the folder that was fetched.
        folder: of this run, for checkpoints: what lies there is gone on from.
        options: the study's own, as they were chosen.
        settings: seed, device and threads, as they were chosen.
        say: prints a line, at once.
    """

    data: Path
    folder: Path
    options: Any
    settings: Settings
    runtime: Runtime
    say: Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """A comparison on a named data set.

    Attributes:
        expected: the result and the time it takes, in words.
        settings: of which a user chooses seed, seeds, device and threads.
        options: a frozen dataclass of the study's own options, with their defaults.
        compare: does the work.
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
    """The files of training/studies/."""
    return tuple(sorted(module.name for module in iter_modules(studies.__path__) if not module.name.startswith("_")))


def load_study(name: str) -> Study:
    """The study of that name, which is a file's."""
    found: Study = import_module(f"training.studies.{name}").STUDY
    return found


def run_study(found: Study, arguments: list[str]) -> None:
    """Runs a study as the command line says. Raises CannotTrain."""
    chosen = _parser(found).parse_args(arguments)
    settings, options = overlay(found.settings, chosen), overlay(found.options, chosen)
    fetcher = Fetcher(Path(chosen.data_dir), chosen.mirror)
    with start_runtime(settings) as runtime:
        if runtime.world_size > 1:
            raise CannotTrain("A study runs in one process: start it without torchrun.")
        data = fetcher.fetch(found.source)
        print(f"{found.name}: {found.summary}", flush=True)
        fingerprint = _fingerprint(found, settings, options, runtime, fetcher.sha256(found.source))
        folder = run_folder.find_or_create(Path(chosen.runs) / found.name, fingerprint, chosen.resume)
        with run_folder.lock(folder):
            began = time.monotonic()
            bench = StudyContext(data, folder, options, settings, runtime, lambda text: print(text, flush=True))
            made = found.compare(bench)
            seconds = made.seconds or time.monotonic() - began
            made = replace(
                made, notes=(*made.notes, f"Made in {seconds / 60:.1f} minutes on: {describe_hardware(runtime)}.")
            )
            _conclude(found, made, folder, chosen, _command(found, settings, options))


def _conclude(found: Study, made: StudyResult, folder: Path, chosen: argparse.Namespace, command: str) -> None:
    facts = {
        "study": found,
        "made": made,
        "command": command,
        "code": run_folder.read_code_version(folder),
        "now": code_version(),
    }
    (folder / "index.html").write_text(render_template("study.html.jinja", facts), encoding="utf-8")
    run_folder.mark_done(folder, {"study": found.name})
    for note in made.notes:
        print(note)
    print(f"Report: {folder / 'index.html'}")
    if chosen.publish:
        card = Path(chosen.cards) / f"{found.name}.md"
        card.parent.mkdir(parents=True, exist_ok=True)
        card.write_text(render_template("study.md.jinja", facts) + "\n", encoding="utf-8")
        print(f"Published: {card}")


def _fingerprint(found: Study, settings: Settings, options: Any, runtime: Runtime, sha256: str) -> dict[str, Any]:
    """What must be the same for a run to be the same run."""
    chosen = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in (asdict(settings) | asdict(options)).items()
        if name not in run_folder.SETTINGS_WITHOUT_EFFECT
    }
    return {"study": found.name, "device": runtime.device.type, "data": sha256, **chosen}


def _command(found: Study, settings: Settings, options: Any) -> str:
    chosen, defaults = asdict(settings) | asdict(options), asdict(found.settings) | asdict(found.options)
    telling = {name: value for name, value in chosen.items() if name not in run_folder.SETTINGS_WITHOUT_EFFECT}
    return reproduction_command(found.name, telling, defaults, None)


def _parser(found: Study) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m training {found.name}",
        usage="%(prog)s [options]",
        description=f"{found.summary}\n\nExpect {found.expected}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flow = parser.add_argument_group("what to do")
    flow.add_argument("--publish", action="store_true", help="write the card under --cards")
    flow.add_argument(
        "--fresh",
        dest="resume",
        action="store_const",
        const="never",
        default="auto",
        help="begin anew, even where an unfinished run could be resumed",
    )
    places = parser.add_argument_group("where things lie")
    for flag, default, text in (
        ("--data-dir", os.environ.get("SEVENFOLD_DATA", ".data"), "where fetched data lies"),
        ("--mirror", os.environ.get("SEVENFOLD_MIRROR", ""), "where to look for data before its official address"),
        ("--runs", "runs", "of checkpoints and reports"),
        ("--cards", "docs/studies", "where cards are published"),
    ):
        places.add_argument(flag, default=default, metavar="DIR", help=f"{text} (default: {default or 'none'})")
    add_options(parser, found.settings, "training")
    add_options(parser, found.options, "this study")
    return parser
