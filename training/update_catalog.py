"""Publish a new table of items for a recommender: `python -m training.update_catalog models/movielens items.csv`.

Corrects titles, withdraws items and names new ones, without retraining. The graph is copied unchanged, so that a
service that has loaded it keeps using it.
"""

import argparse
import datetime
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tasks._items import ItemTable
from tasks.contract import InvalidInput
from tasks.goldens import Golden, read_goldens, write_goldens
from tasks.manifest import (
    CARD,
    GOLDENS,
    MODEL,
    BrokenModel,
    Manifest,
    entries_of,
    read_manifest,
    verify_files,
    write_manifest,
    write_task_files,
)
from tasks.recommendations import Recommendations
from tasks.system_errors import describe_os_error, run_command_line
from tasks.version_folder import write_version
from training.core.errors import CannotTrain
from training.core.provenance import code_version
from training.learners.recommendations.interactions import read_items
from training.publishing.export import onnx_runner
from training.publishing.publish import replay


def main(arguments: Sequence[str]) -> int:
    """Run a command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.update_catalog", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model, with its versions, such as models/movielens")
    parser.add_argument(
        "items",
        type=Path,
        help="CSV or Parquet file with the items' ids, titles, other columns, and optionally `available` (true or "
        "false; false = not recommended); items that are not listed are withdrawn",
    )
    parser.add_argument("--item-column", default="", help="name of the id column, if it is not a usual one")
    parser.add_argument("--withdraw", action="store_true", help="allow withdrawing more than half of all items")
    options = parser.parse_args(arguments)
    try:
        folder, changes = update_items(options.model, options.items, options.item_column, withdraw=options.withdraw)
    except (CannotTrain, BrokenModel) as error:
        print(f"training.update_catalog: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"training.update_catalog: {describe_os_error(error)}", file=sys.stderr)
        return 2
    print(changes)
    print(f"Published: {folder}")
    return 0


def update_items(model: Path, items: Path, column: str = "", *, withdraw: bool = False) -> tuple[Path, str]:
    """Publish a version of the model with this table of items; return its folder, and a summary of the changes.

    Raises CannotTrain or BrokenModel if the model is not a recommender, the table cannot be read, or it would
    withdraw more than half of the items without `withdraw`.
    """
    last = _last_version(model)
    manifest = read_manifest(last)
    verify_files(last, manifest)
    old = manifest.load_task(last)
    if not isinstance(old, Recommendations):
        raise CannotTrain(f"{model} is a model of the task '{manifest.task}'; only recommendations have an item table.")
    table = merge_items(old, read_items(items, column))
    withdrawn = len(set(table.withdrawn) - set(old.items.withdrawn))
    if not withdraw and 2 * withdrawn > len(old.items) - len(old.items.withdrawn):
        raise CannotTrain(
            f"{items} does not list {withdrawn:,} of {len(old.items):,} items, which would no longer be recommended: "
            "list all that should be, or confirm with --withdraw."
        )
    task = Recommendations(old.known, old.scale, old.ordered, table, old.users, old.example_user, old.example_items)
    changes = _summarise_changes(old, task)

    def write(folder: Path, version: str) -> None:
        _write_version(folder, last, task, manifest.model_copy(update={"version": version}), changes)

    return write_version(model, write), changes


def _last_version(model: Path) -> Path:
    versions = [path for path in model.iterdir() if path.name.isdecimal()] if model.is_dir() else []
    if not versions:
        raise CannotTrain(f"{model} contains no model versions; expected a folder such as models/movielens.")
    return max(versions, key=lambda path: int(path.name))


def merge_items(old: Recommendations, new: ItemTable) -> ItemTable:
    """Return the items known to the network in its order, as the new table describes them, followed by new items."""
    known = old.items.ids[: old.known]
    if not set(known) & set(new.ids):
        raise CannotTrain("The network knows none of the items in the table: does it use the same ids?")
    ids = (*known, *(name for name in new.ids if name not in set(known)))
    old_rows = old.items.rows

    def merge_column(new_values: Sequence[str], old_values: Sequence[str]) -> tuple[str, ...]:
        return tuple(new_values[new.rows[name]] if name in new.rows else old_values[old_rows[name]] for name in ids)

    blank = ("",) * len(old.items)
    return ItemTable(
        ids=ids,
        titles=merge_column(new.titles, old.items.titles),
        likes=tuple(old.items.likes[old_rows[name]] if name in old_rows else 0 for name in ids),
        details={
            name: merge_column(values, old.items.details.get(name, blank)) for name, values in new.details.items()
        },
        withdrawn=tuple(name for name in ids if name not in new.rows or name in set(new.withdrawn)),
    )


def _summarise_changes(old: Recommendations, new: Recommendations) -> str:
    before, after = old.items, new.items
    titles = sum(
        after.titles[after.rows[name]] != before.titles[before.rows[name]] for name in before.ids if name in after.rows
    )
    withdrawn = set(after.withdrawn) - set(before.withdrawn)
    restored = set(before.withdrawn) - set(after.withdrawn)
    added = len(set(after.ids) - set(before.ids))
    return (
        f"{titles:,} titles changed, {len(withdrawn):,} items withdrawn, {len(restored):,} restored, {added:,} added; "
        "items that the network does not know are not recommended until it is retrained."
    )


def _write_version(folder: Path, last: Path, task: Recommendations, manifest: Manifest, changes: str) -> None:
    """Copy the last version and replace what depends on the table; the manifest is written last, then verified."""
    shutil.copytree(last, folder, dirs_exist_ok=True)
    write_task_files(folder, task)
    run = onnx_runner(folder / MODEL, task)
    goldens = []
    for golden in read_goldens(last):
        try:
            answer = task.answer(run, golden.request).plain()
        except InvalidInput as error:
            raise CannotTrain(f"The table is not compatible with {folder / GOLDENS}: {error}") from None
        goldens.append(Golden(request=golden.request, answer=answer))
    write_goldens(folder, goldens)
    card = folder / CARD
    if card.exists():
        text = card.read_text(encoding="utf-8")
        note = f"\n## Item table\n\nVersion {manifest.version} has a new item table, compared with {last.name}: "
        card.write_text(text.rstrip("\n") + f"\n{note}{changes}\n", encoding="utf-8")
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"created": created, "code": code_version(), "files": entries_of(folder)}
    write_manifest(folder, manifest.model_copy(update=facts))
    replay(folder)


if __name__ == "__main__":
    sys.exit(run_command_line(main, sys.argv[1:]))
