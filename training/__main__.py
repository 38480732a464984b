"""The command line: `python -m training RECIPE` or `python -m training TASK --data …`."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

try:
    import torch
except ModuleNotFoundError:
    sys.exit("training: torch is not installed; `make train RECIPE=…` or `make test` installs what training needs.")

from tasks.near_names import suggest
from tasks.system_errors import describe_os_error, run_command_line
from training.core.command_line import Parser, Vocabulary, add_data_folders, read_leftovers
from training.core.config import Settings, add_options, option_fields, overlay
from training.core.errors import CannotTrain
from training.core.files import require_readable, require_writable
from training.core.recipe import Recipe, select_preset
from training.core.settings_file import SETTINGS, SettingsFile, read_settings_file
from training.data.download import Fetcher
from training.engine.runtime import end_process, start_runtime
from training.registry import learner_names, learner_type, load_recipe, recipe_for, recipe_names
from training.reporting import run_folder
from training.reporting.report import reproduction_command
from training.reporting.run_folder import Plan
from training.session import open_session, run
from training.studies._runner import load_study, run_study, study_names
from training.train_all import ALL, train_all

_MAX_NAMED = 8
"""Options that a sentence names."""
_DATA_PAGE = "docs/training-data.md"
_ANYWAY = "publish even if the model is worse than its baseline or than the version it replaces"


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
        "       python -m training --config SETTINGS.JSON [options]",
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
    lines += [
        "",
        "`python -m training NAME --help` lists the options of each.",
        f"What --data may look like: {_DATA_PAGE}.",
    ]
    return "\n".join(lines)


def _run_command(arguments: Sequence[str]) -> int:
    name, options = _find_name(arguments)
    if name == ALL:
        parser = _parser_for_all()
        words = _rewrite(parser, ALL, options)
        return train_all(map(load_recipe, recipe_names()), _parse(parser, ALL, words), train_recipe)
    if name in study_names():
        run_study(load_study(name), options)
    elif name in recipe_names():
        train_recipe(load_recipe(name), options)
    else:
        train_recipe(recipe_for(name, name, Path("data")), options)
    return 0


def _find_name(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the recipe, study or task of a command line, and its options. Raises CannotTrain."""
    first, names = arguments[0], (ALL, *recipe_names(), *study_names(), *learner_names())
    if first.startswith("-"):
        file = _settings_file(arguments)
        if file is None:
            name = next((word for word in arguments if word in names), "NAME")
            raise CannotTrain(
                f"What to train comes first: python -m training {name} {first} …; --help lists the names."
            )
        return _name_in(file), list(arguments)
    name = first.lower().replace("-", "_")
    if name in names:
        if name != first:
            _print_once(f"{first} is read as {name}.")
        return name, list(arguments[1:])
    if Path(first).exists():
        raise CannotTrain(
            f"'{first}' is no recipe or task; to train on it, name the task: python -m training TASK --data {first}, "
            f"with {', '.join(learner_names())}."
        )
    known = suggest(first, names) or f" The names are {', '.join(names)}."
    raise CannotTrain(f"There is no recipe or task named '{first}'.{known}")


def _name_in(file: SettingsFile) -> str:
    """Return the recipe, or else the task, that a settings file is of. Raises CannotTrain."""
    if file.recipe in recipe_names() and load_recipe(file.recipe).task == file.task:
        return file.recipe
    if file.task in learner_names():
        return file.task
    raise CannotTrain(f"--config {file.path}: it does not say of which recipe or task it is; name it: NAME --config …")


def _settings_file(options: Sequence[str]) -> SettingsFile | None:
    """Read the file of --config, if it is among these options. Raises CannotTrain."""
    parser = Parser(add_help=False)
    parser.add_argument("--config", type=Path)
    path = parser.parse_known_args(options)[0].config
    return read_settings_file(path) if path else None


def _rewrite(parser: Parser, command: str, options: Sequence[str]) -> list[str]:
    """Return the options under the program's own names, and say which were read otherwise. Raises CannotTrain."""
    words, notes = Vocabulary(command, parser.option_names, _tasks_with_option).rewrite(options)
    for note in notes:
        _print_once(note)
    return words


def _parse(parser: Parser, command: str, words: Sequence[str]) -> argparse.Namespace:
    """Parse options; a path alone is read as --data. Raises CannotTrain."""
    arguments, leftovers = parser.parse_known_args(words)
    for note in read_leftovers(arguments, leftovers, command):
        _print_once(note)
    return arguments


def _tasks_with_option(option: str) -> list[str]:
    """Return the names of the tasks whose learner has this option."""
    name = option.removeprefix("no-").replace("-", "_")
    return [
        task
        for task in learner_names()
        if name in {item.name for item in option_fields(learner_type(task).default_options)}
    ]


def _print_once(text: str) -> None:
    """Print a line, in the main process only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def train_recipe(recipe: Recipe, options: list[str]) -> Path | None:
    """Train a recipe, or a task on the user's own data, with these command-line options; return the run folder.

    Returns None after a sweep over learning rates. Raises CannotTrain.
    """
    name = recipe.name
    words = _rewrite(_parser(name, recipe), name, options)
    file = _settings_file(words)
    gpu = _uses_gpu(words, file)
    recipe = select_preset(recipe, gpu=gpu)
    arguments = _parse(_parser(name, _with_settings_of(file, recipe)), name, words)
    data = Path(arguments.data) if arguments.data else None
    if data and not data.exists():
        raise CannotTrain(f"--data {data}: no such file or folder.")
    if name in learner_names():
        if not data:
            raise CannotTrain(_describe_missing_data(name, file))
        recipe = recipe_for(
            name,
            _check_name(arguments.name or _model_name(file) or name),
            data,
            arguments.licence,
            title=_one_line(arguments.title),
            description=arguments.description.strip(),
        )
    settings, task_options = overlay(recipe.settings, vars(arguments)), overlay(recipe.options, vars(arguments))
    command = _reproduction_command(name, recipe, settings, task_options, arguments, gpu=gpu)
    plan = Plan(recipe, settings, task_options, command)
    fetcher = Fetcher(Path(arguments.data_dir), arguments.mirror)
    with start_runtime(settings) as runtime:
        if runtime.is_main:
            _check_folders(arguments, recipe.name)
            if data:
                require_readable(data)
        return run(open_session(plan, data, fetcher, runtime), runtime, arguments)


def _with_settings_of(file: SettingsFile | None, recipe: Recipe) -> Recipe:
    """Return the recipe with the settings of a run as its defaults, and say what the file does not contain.

    Raises CannotTrain if the file is of another task, or contains other settings.
    """
    if file is None:
        return recipe
    if file.task not in ("", recipe.task) or (recipe.name in recipe_names() and file.recipe not in ("", recipe.name)):
        raise CannotTrain(f"{file.path} is of {file.recipe or 'the task'} ({file.task}), not of {recipe.name}.")
    settings, options = file.apply(recipe.settings, recipe.options)
    missing = file.missing(settings, options, without=run_folder.SETTINGS_WITHOUT_EFFECT)
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing[:_MAX_NAMED])
        flags += f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        _print_once(f"{file.path} does not contain {flags}: the defaults are used.")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if file.processes not in (None, processes):
        _print_once(f"{file.path} is of a run with {file.processes} processes (torchrun); this one has {processes}.")
    return replace(recipe, settings=settings, options=options)


def _describe_missing_data(task: str, file: SettingsFile | None) -> str:
    reason = f"; {file.path} does not say where the data is, since {SETTINGS} contains no paths" if file else ""
    return f"python -m training {task} needs --data, {learner_type(task).data_kind}{reason}."


def _model_name(file: SettingsFile | None) -> str:
    """Return the name of the model that a settings file is of; empty if it is a recipe's."""
    return file.recipe if file and file.recipe not in recipe_names() else ""


def _check_folders(arguments: argparse.Namespace, name: str) -> None:
    """Check before training that its results can be written. Raises CannotTrain."""
    require_writable(Path(arguments.runs) / name, "--runs")
    if arguments.publish:
        require_writable(Path(arguments.models) / name, "--models")
    if arguments.export_embeddings:
        require_writable(Path(arguments.export_embeddings).parent, "--export-embeddings")


def _uses_gpu(options: Sequence[str], file: SettingsFile | None) -> bool:
    """Whether these options train on a GPU, for which a recipe has other defaults (also shown by --help)."""
    parser = Parser(add_help=False)
    parser.add_argument("--device", default=str(file.values.get("device", "auto")) if file else "auto")
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


def _parser(name: str, recipe: Recipe) -> Parser:
    parser = Parser(
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


def _parser_for_all() -> Parser:
    parser = Parser(
        prog="python -m training all",
        usage="%(prog)s [options]",
        description=(
            "Train all recipes, one after another. Recipes that are finished (and published) with the same settings "
            "are not trained again, so that the same command resumes after an interruption. Recipes whose data is "
            "unavailable are skipped."
        ),
    )
    parser.add_argument("--publish", action="store_true", help="publish a new version of each model")
    parser.add_argument("--anyway", action="store_true", help=_ANYWAY)
    _add_folders(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="device to train on")
    parser.add_argument("--threads", type=int, metavar="INT", help="CPU threads; 0 = one per core")
    return parser


def _add_actions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("actions")
    group.add_argument("--publish", action="store_true", help="export and publish a new version under --models")
    group.add_argument("--anyway", action="store_true", help=_ANYWAY)
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
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings.json of a run, to start it anew: its settings are the defaults of all other options",
    )
    _add_folders(group)


def _add_folders(group: Any) -> None:
    add_data_folders(group)
    group.add_argument(
        "--runs", default="runs", metavar="DIR", help="folder for checkpoints and reports (default: runs)"
    )
    group.add_argument(
        "--models", default="models", metavar="DIR", help="folder for published models (default: models)"
    )


def _reproduction_command(
    name: str, recipe: Recipe, settings: Settings, options: Any, arguments: argparse.Namespace, *, gpu: bool
) -> str:
    """Return the command that trains the same model, on whichever machine."""
    own_data = {
        key: getattr(arguments, key)
        for key in ("title", "description", "licence", "full_precision")
        if getattr(arguments, key, None) not in (None, "", "unknown", False)
    }
    if recipe.name != name:
        own_data = {"name": recipe.name, **own_data}
    # The defaults differ by device.
    device = {"device": "cuda" if gpu else "cpu"} if recipe.on_gpu else {}
    defaults = {**asdict(recipe.settings), **asdict(recipe.options), **dict.fromkeys((*own_data, *device))}
    values = {**own_data, **asdict(settings), **asdict(options)}
    relevant = {option: value for option, value in values.items() if option not in run_folder.SETTINGS_WITHOUT_EFFECT}
    return reproduction_command(
        name, {**relevant, **device}, defaults, Path(arguments.data) if arguments.data else None
    )


if __name__ == "__main__":
    exit_status = run_command_line(main, sys.argv[1:])
    end_process(exit_status)
    sys.exit(exit_status)
