"""The command line: `python -m training RECIPE` or `python -m training TASK --data …`."""

import argparse
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

try:
    import torch
except ModuleNotFoundError:
    sys.exit(
        "training: torch is not installed here; `make train RECIPE=…` or `make test` installs what training needs."
    )

from training.core.config import Settings, add_options, overlay
from training.core.errors import CannotTrain
from training.core.recipe import Recipe, select_preset
from training.data.download import Fetcher
from training.engine.runtime import start_runtime
from training.registry import learner_names, learner_type, load_recipe, recipe_for, recipe_names
from training.reporting import run_folder
from training.reporting.report import reproduction_command
from training.reporting.run_folder import Plan
from training.session import open_session, run
from training.studies._runner import load_study, run_study, study_names
from training.train_all import ALL, train_all


def main(arguments: list[str]) -> int:
    """Runs a command line; returns the status to exit with."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    try:
        return _run(arguments)
    except CannotTrain as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("training: stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130


def _overview() -> str:
    lines = [
        "usage: python -m training RECIPE [options]",
        "       python -m training TASK --data PATH --name NAME [options]",
        "       python -m training all [options]",
    ]
    lines += [
        "",
        "Trains a network, writes a report and, with --publish, a model that the service serves.",
        "",
        "recipes:",
    ]
    for name in recipe_names():
        found = load_recipe(name)
        lines += [f"  {name:<16} {found.summary}", f"  {'':<16} expect {found.expected}"]
    lines += ["", "studies, which compare and publish a page:"]
    for name in study_names():
        lines += [f"  {name:<16} {load_study(name).summary}", f"  {'':<16} expect {load_study(name).expected}"]
    lines += ["", "tasks, for data of your own:"]
    for name in learner_names():
        learner = learner_type(name)
        lines += [f"  {name:<16} {learner.summary}", f"  {'':<16} --data: {learner.data_kind}"]
    lines += ["", "`python -m training NAME --help` lists the options of each."]
    return "\n".join(lines)


def _run(arguments: list[str]) -> int:
    name, options = arguments[0], arguments[1:]
    if name == ALL:
        return train_all(map(load_recipe, recipe_names()), _parser_of_all().parse_args(options), train_recipe)
    if name in study_names():
        run_study(load_study(name), options)
    elif name in recipe_names():
        train_recipe(load_recipe(name), options)
    elif name in learner_names():
        train_recipe(recipe_for(name, name, Path("data"), "unknown"), options)
    else:
        known = ", ".join((*recipe_names(), *study_names(), *learner_names()))
        raise CannotTrain(f"There is no recipe or task named '{name}'; there are {known}.")
    return 0


def train_recipe(found: Recipe, arguments: list[str]) -> Path | None:
    """Trains a recipe, or a task on data of the user's own, as the options say; the folder of the run.

    None where there is no run: a sweep over learning rates. Raises CannotTrain.
    """
    name = found.name
    found = select_preset(found, gpu=_has_gpu(arguments))
    chosen = _parser(name, found).parse_args(arguments)
    data = Path(chosen.data) if chosen.data else None
    if data and not data.exists():
        raise CannotTrain(f"--data {data}: there is no such file or folder.")
    if name in learner_names():
        if not data:
            raise CannotTrain(f"python -m training {name} needs --data, {learner_type(name).data_kind}.")
        found = recipe_for(name, _checked(chosen.name or name), data, chosen.licence)
    settings, options = overlay(found.settings, chosen), overlay(found.options, chosen)
    plan = Plan(found, settings, options, _reproducing(name, found, settings, options, chosen))
    fetcher = Fetcher(Path(chosen.data_dir), chosen.mirror)
    with start_runtime(settings) as runtime:
        return run(open_session(plan, data, fetcher, runtime), runtime, chosen)


def _has_gpu(options: list[str]) -> bool:
    """Whether this will train on a GPU: then a recipe has other defaults, and help lists those."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", default="auto")
    return parser.parse_known_args(options)[0].device != "cpu" and torch.cuda.is_available()


def _checked(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        raise CannotTrain(
            f"--name {name}: a name is of small letters, digits, '-' and '_', and begins with neither sign."
        )
    return name


def _parser(name: str, found: Recipe) -> argparse.ArgumentParser:
    text = found.summary + (f"\n\nExpect {found.expected}." if found.expected else "")
    parser = argparse.ArgumentParser(
        prog=f"python -m training {name}",
        usage="%(prog)s [options]",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_flow(parser)
    _add_places(parser, found, own_data=name in learner_names())
    add_options(parser, found.settings, "training")
    add_options(parser, found.options, "this task")
    return parser


def _parser_of_all() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training all",
        usage="%(prog)s [options]",
        description=(
            "Trains every recipe, one after the other. What is finished (and published) with the same settings is left "
            "as it is, so that the same command goes on where it was stopped. A recipe whose data is nowhere to be had "
            "is skipped."
        ),
    )
    parser.add_argument("--publish", action="store_true", help="publish a new version of each")
    _add_folders(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="what to train on")
    parser.add_argument("--threads", type=int, metavar="INT", help="CPU threads; 0: one a core")
    return parser


def _add_flow(parser: argparse.ArgumentParser) -> None:
    flow = parser.add_argument_group("what to do")
    flow.add_argument("--publish", action="store_true", help="export and publish a new version under --models")
    flow.add_argument("--torchscript", action="store_true", help="also publish the network as TorchScript, model.ts")
    flow.add_argument(
        "--full-precision", action="store_true", help="publish the weights in 32 bits, not 16: twice as large"
    )
    flow.add_argument(
        "--export-embeddings", metavar="FILE", help="write what was learnt of each category as a Parquet file"
    )
    flow.add_argument("--find-lr", action="store_true", help="only sweep over learning rates: a plot and a suggestion")
    resume = flow.add_mutually_exclusive_group()
    resume.add_argument(
        "--resume",
        action="store_const",
        const="always",
        default="auto",
        help="go on with the last run of these settings, also a finished one: its report and model are made again",
    )
    resume.add_argument(
        "--keep",
        dest="resume",
        action="store_const",
        const="keep",
        help="the same, or begin a run where there is none; what is finished, and published, is left as it is",
    )
    resume.add_argument(
        "--fresh",
        dest="resume",
        action="store_const",
        const="never",
        help="begin a new run, even where an unfinished one could be resumed",
    )


def _add_places(parser: argparse.ArgumentParser, found: Recipe, *, own_data: bool) -> None:
    places = parser.add_argument_group("where things lie")
    if not own_data:
        places.add_argument("--data", metavar="PATH", help="the recipe's data, where it lies unpacked already")
    else:
        kind = learner_type(found.task).data_kind
        places.add_argument("--data", metavar="PATH", help=f"what to train on: {kind}")
        places.add_argument("--name", help="of the model (default: the task's)")
        places.add_argument("--licence", default="unknown", help="of the data, for the card (default: unknown)")
    _add_folders(places)


def _add_folders(places: Any) -> None:
    places.add_argument(
        "--data-dir",
        default=os.environ.get("SEVENFOLD_DATA", ".data"),
        metavar="DIR",
        help="where fetched data lies (default: $SEVENFOLD_DATA or .data)",
    )
    places.add_argument(
        "--mirror",
        default=os.environ.get("SEVENFOLD_MIRROR", ""),
        metavar="DIR|URL",
        help="where to look for data before its official address (default: $SEVENFOLD_MIRROR)",
    )
    places.add_argument("--runs", default="runs", metavar="DIR", help="of checkpoints and reports (default: runs)")
    places.add_argument(
        "--models", default="models", metavar="DIR", help="where models are published (default: models)"
    )


def _reproducing(name: str, found: Recipe, settings: Settings, options: Any, chosen: argparse.Namespace) -> str:
    own_data = {
        key: getattr(chosen, key)
        for key in ("name", "licence", "full_precision")
        if getattr(chosen, key, None) not in (None, "unknown", False)
    }
    defaults = {**asdict(found.settings), **asdict(found.options), **dict.fromkeys(own_data)}
    made = {**own_data, **asdict(settings), **asdict(options)}
    telling = {option: value for option, value in made.items() if option not in run_folder.SETTINGS_WITHOUT_EFFECT}
    return reproduction_command(name, telling, defaults, chosen.data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
