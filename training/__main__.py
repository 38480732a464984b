"""The command line: `python -m training RECIPE` or `python -m training TASK --data …`."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

try:
    import torch
except ModuleNotFoundError:
    sys.exit("training: torch is not installed; `make train RECIPE=…` or `make test` installs what training needs.")

from tasks.system_errors import describe_os_error, run_command_line
from training.core.config import Settings, add_options, overlay
from training.core.errors import CannotTrain
from training.core.files import require_readable, require_writable
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


def main(arguments: Sequence[str]) -> int:
    """Run a command line; return the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    try:
        return _run_command(arguments)
    except CannotTrain as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"training: {describe_os_error(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("training: interrupted; the same command resumes from the last checkpoint.", file=sys.stderr)
        return 130


def _overview() -> str:
    lines = [
        "usage: python -m training RECIPE [options]",
        "       python -m training TASK --data PATH --name NAME [options]",
        "       python -m training all [options]",
        "",
        "Train a network, write a report and, with --publish, a model for the service.",
        "",
        "recipes:",
    ]
    for name in recipe_names():
        recipe = load_recipe(name)
        lines += [f"  {name:<16} {recipe.summary}", f"  {'':<16} expect {recipe.expected}"]
    lines += ["", "studies, which compare networks and publish a page:"]
    for name in study_names():
        lines += [f"  {name:<16} {load_study(name).summary}", f"  {'':<16} expect {load_study(name).expected}"]
    lines += ["", "tasks, for your own data:"]
    for name in learner_names():
        learner = learner_type(name)
        lines += [f"  {name:<16} {learner.summary}", f"  {'':<16} --data: {learner.data_kind}"]
    lines += ["", "`python -m training NAME --help` lists the options of each."]
    return "\n".join(lines)


def _run_command(arguments: Sequence[str]) -> int:
    name, options = arguments[0], list(arguments[1:])
    if name == ALL:
        return train_all(map(load_recipe, recipe_names()), _parser_for_all().parse_args(options), train_recipe)
    if name in study_names():
        run_study(load_study(name), options)
    elif name in recipe_names():
        train_recipe(load_recipe(name), options)
    elif name in learner_names():
        train_recipe(recipe_for(name, name, Path("data")), options)
    else:
        known = ", ".join((*recipe_names(), *study_names(), *learner_names()))
        raise CannotTrain(f"There is no recipe or task named '{name}'; the names are {known}.")
    return 0


def train_recipe(recipe: Recipe, options: list[str]) -> Path | None:
    """Train a recipe, or a task on the user's own data, with these command-line options; return the run folder.

    Returns None after a sweep over learning rates. Raises CannotTrain.
    """
    name = recipe.name
    recipe = select_preset(recipe, gpu=_uses_gpu(options))
    arguments = _parser(name, recipe).parse_args(options)
    data = Path(arguments.data) if arguments.data else None
    if data and not data.exists():
        raise CannotTrain(f"--data {data}: no such file or folder.")
    if name in learner_names():
        if not data:
            raise CannotTrain(f"python -m training {name} needs --data, {learner_type(name).data_kind}.")
        recipe = recipe_for(
            name,
            _check_name(arguments.name or name),
            data,
            arguments.licence,
            title=_one_line(arguments.title),
            description=arguments.description.strip(),
        )
    settings, task_options = overlay(recipe.settings, arguments), overlay(recipe.options, arguments)
    command = _reproduction_command(name, recipe, settings, task_options, arguments)
    plan = Plan(recipe, settings, task_options, command)
    fetcher = Fetcher(Path(arguments.data_dir), arguments.mirror)
    with start_runtime(settings) as runtime:
        if runtime.is_main:
            _check_folders(arguments, recipe.name)
            if data:
                require_readable(data)
        return run(open_session(plan, data, fetcher, runtime), runtime, arguments)


def _check_folders(arguments: argparse.Namespace, name: str) -> None:
    """Check before training that its results can be written. Raises CannotTrain."""
    require_writable(Path(arguments.runs) / name, "--runs")
    if arguments.publish:
        require_writable(Path(arguments.models) / name, "--models")
    if arguments.export_embeddings:
        require_writable(Path(arguments.export_embeddings).parent, "--export-embeddings")


def _uses_gpu(options: list[str]) -> bool:
    """Whether these options train on a GPU, for which a recipe has other defaults (also shown by --help)."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", default="auto")
    return parser.parse_known_args(options)[0].device != "cpu" and torch.cuda.is_available()


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        raise CannotTrain(
            f"--name {name}: a name consists of lower-case letters, digits, '-' and '_' (at most 64), and starts with "
            "a letter or digit."
        )
    return name


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def _parser(name: str, recipe: Recipe) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m training {name}",
        usage="%(prog)s [options]",
        description=f"{_capitalise(recipe.summary)}." + (f"\n\nExpect {recipe.expected}." if recipe.expected else ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_actions(parser)
    _add_paths(parser, recipe, own_data=name in learner_names())
    add_options(parser, recipe.settings, "training")
    add_options(parser, recipe.options, "this task")
    return parser


def _parser_for_all() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training all",
        usage="%(prog)s [options]",
        description=(
            "Train all recipes, one after another. Recipes that are finished (and published) with the same settings "
            "are not trained again, so that the same command resumes after an interruption. Recipes whose data is "
            "unavailable are skipped."
        ),
    )
    parser.add_argument("--publish", action="store_true", help="publish a new version of each model")
    _add_folders(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="device to train on")
    parser.add_argument("--threads", type=int, metavar="INT", help="CPU threads; 0 = one per core")
    return parser


def _add_actions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("actions")
    group.add_argument("--publish", action="store_true", help="export and publish a new version under --models")
    group.add_argument(
        "--anyway",
        action="store_true",
        help="publish even if the model is worse than a baseline or than the version it replaces",
    )
    group.add_argument("--torchscript", action="store_true", help="also publish the network as TorchScript, model.ts")
    group.add_argument(
        "--full-precision", action="store_true", help="publish the weights in 32 bits instead of 16: twice the size"
    )
    group.add_argument(
        "--export-embeddings", metavar="FILE", help="write the trained embeddings of categories to a Parquet file"
    )
    group.add_argument(
        "--find-lr",
        action="store_true",
        help="only run the learning-rate finder: plot the loss by rate and suggest a rate",
    )
    resume = group.add_mutually_exclusive_group()
    resume.add_argument(
        "--resume",
        action="store_const",
        const="always",
        default="auto",
        help="resume the last run with these settings; if it is finished, write its report and model again",
    )
    resume.add_argument(
        "--keep",
        dest="resume",
        action="store_const",
        const="keep",
        help="like --resume, but start a run if there is none, and do nothing if it is finished (and published)",
    )
    resume.add_argument(
        "--fresh",
        dest="resume",
        action="store_const",
        const="never",
        help="start a new run, even if an unfinished one could be resumed",
    )


def _add_paths(parser: argparse.ArgumentParser, recipe: Recipe, *, own_data: bool) -> None:
    group = parser.add_argument_group("paths")
    if not own_data:
        group.add_argument(
            "--data", metavar="PATH", help="folder with the recipe's data, if it has been unpacked already"
        )
    else:
        kind = learner_type(recipe.task).data_kind
        group.add_argument("--data", metavar="PATH", help=f"data to train on: {kind}")
        group.add_argument("--name", help="name of the model (default: the task's)")
        group.add_argument("--title", default="", help="title of the model, for people (default: its name)")
        group.add_argument("--description", default="", help="what the model is for, for its card")
        group.add_argument("--licence", default="unknown", help="licence of the data, for the card (default: unknown)")
    _add_folders(group)


def _add_folders(group: Any) -> None:
    group.add_argument(
        "--data-dir",
        default=os.environ.get("SEVENFOLD_DATA", ".data"),
        metavar="DIR",
        help="folder for downloaded data (default: $SEVENFOLD_DATA or .data)",
    )
    group.add_argument(
        "--mirror",
        default=os.environ.get("SEVENFOLD_MIRROR", ""),
        metavar="DIR|URL",
        help="folder or address to try before the official one (default: $SEVENFOLD_MIRROR)",
    )
    group.add_argument(
        "--runs", default="runs", metavar="DIR", help="folder for checkpoints and reports (default: runs)"
    )
    group.add_argument(
        "--models", default="models", metavar="DIR", help="folder for published models (default: models)"
    )


def _reproduction_command(
    name: str, recipe: Recipe, settings: Settings, options: Any, arguments: argparse.Namespace
) -> str:
    own_data = {
        key: getattr(arguments, key)
        for key in ("name", "title", "description", "licence", "full_precision")
        if getattr(arguments, key, None) not in (None, "", "unknown", False)
    }
    defaults = {**asdict(recipe.settings), **asdict(recipe.options), **dict.fromkeys(own_data)}
    values = {**own_data, **asdict(settings), **asdict(options)}
    relevant = {option: value for option, value in values.items() if option not in run_folder.SETTINGS_WITHOUT_EFFECT}
    return reproduction_command(name, relevant, defaults, Path(arguments.data) if arguments.data else None)


if __name__ == "__main__":
    sys.exit(run_command_line(main, sys.argv[1:]))
