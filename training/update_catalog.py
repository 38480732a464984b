"""A new table of items for a published recommender: `python -m training.items models/movielens items.csv`.

Titles are mended, items withdrawn and new ones named without training anew. The graph is the old one, byte for byte, so
a service that has it in memory goes on with it.
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
from training.core.errors import CannotTrain
from training.core.provenance import code_version
from training.learners.recommendations.interactions import read_items
from training.publishing.export import onnx_runner
from training.publishing.publish import replay


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the status to exit with."""
    parser = argparse.ArgumentParser(prog="python -m training.items", description=__doc__)
    parser.add_argument("model", type=Path, help="the model's folder, which holds its versions: models/movielens")
    parser.add_argument(
        "items",
        type=Path,
        help="CSV or Parquet: the items' ids, titles, other columns, and `available` (true or false) where some are "
        "not to be recommended; items that it does not name are withdrawn",
    )
    parser.add_argument("--item-column", default="", help="the column of ids, where its name is not a usual one")
    parser.add_argument("--withdraw", action="store_true", help="even where that withdraws more than half of all items")
    chosen = parser.parse_args(arguments)
    try:
        folder, words = update_items(chosen.model, chosen.items, chosen.item_column, withdraw=chosen.withdraw)
    except (CannotTrain, BrokenModel) as error:
        print(f"training.items: {error}", file=sys.stderr)
        return 2
    print(words)
    print(f"Published: {folder}")
    return 0


def update_items(model: Path, items: Path, column: str = "", *, withdraw: bool = False) -> tuple[Path, str]:
    """Publishes a version of the model with this table of items; its folder, and what has changed.

    Raises CannotTrain or BrokenModel where the model is no recommender, the table cannot be read, or names so few items
    that more than half would be withdrawn, unless `withdraw` says that this is meant.
    """
    last = _last_version(model)
    manifest = read_manifest(last)
    verify_files(last, manifest)
    old = manifest.load_task(last)
    if not isinstance(old, Recommendations):
        raise CannotTrain(f"{model} is of the task '{manifest.task}': only recommendations have a table of items.")
    table = merge_items(old, read_items(items, column))
    gone = len(set(table.withdrawn) - set(old.items.withdrawn))
    if not withdraw and 2 * gone > len(old.items) - len(old.items.withdrawn):
        raise CannotTrain(
            f"{items} leaves out {gone:,} of {len(old.items):,} items, which would no longer be recommended: name all "
            "that should be, or say --withdraw."
        )
    task = Recommendations(old.known, old.scale, old.ordered, table, old.users, old.example_user, old.example_items)
    version = str(int(last.name) + 1)
    partial = model / f".{version}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, last, task, manifest.model_copy(update={"version": version}), _changes(old, task))
        partial.rename(model / version)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return model / version, _changes(old, task)


def _last_version(model: Path) -> Path:
    versions = [path for path in model.iterdir() if path.name.isdecimal()] if model.is_dir() else []
    if not versions:
        raise CannotTrain(f"{model} holds no versions of a model: name a folder such as models/movielens.")
    return max(versions, key=lambda path: int(path.name))


def merge_items(old: Recommendations, new: ItemTable) -> ItemTable:
    """The items that the network knows in its order, as the new table describes them, then those it does not know."""
    known = old.items.ids[: old.known]
    if not set(known) & set(new.ids):
        raise CannotTrain("None of the items in the table is one that the network knows: are these the right ids?")
    ids = (*known, *(name for name in new.ids if name not in set(known)))
    old_rows = old.items.rows

    def arranged(theirs: Sequence[str], ours: Sequence[str]) -> tuple[str, ...]:
        return tuple(theirs[new.rows[name]] if name in new.rows else ours[old_rows[name]] for name in ids)

    blank = ("",) * len(old.items)
    return ItemTable(
        ids=ids,
        titles=arranged(new.titles, old.items.titles),
        likes=tuple(old.items.likes[old_rows[name]] if name in old_rows else 0 for name in ids),
        details={name: arranged(values, old.items.details.get(name, blank)) for name, values in new.details.items()},
        withdrawn=tuple(name for name in ids if name not in new.rows or name in set(new.withdrawn)),
    )


def _changes(old: Recommendations, new: Recommendations) -> str:
    before, after = old.items, new.items
    titles = sum(
        after.titles[after.rows[name]] != before.titles[before.rows[name]] for name in before.ids if name in after.rows
    )
    withdrawn, back = set(after.withdrawn) - set(before.withdrawn), set(before.withdrawn) - set(after.withdrawn)
    fresh = len(set(after.ids) - set(before.ids))
    return (
        f"{titles:,} titles changed, {len(withdrawn):,} items withdrawn, {len(back):,} recommended again, {fresh:,} "
        "new ones named; those the network has not learnt of are not recommended before the next training."
    )


def _write(folder: Path, last: Path, task: Recommendations, manifest: Manifest, changes: str) -> None:
    """All of the last version but what follows from the table; the manifest last, checked by its goldens."""
    shutil.copytree(last, folder)
    write_task_files(folder, task)
    run = onnx_runner(folder / MODEL, task)
    goldens = []
    for golden in read_goldens(last):
        try:
            answer = task.answer(run, golden.request).plain()
        except InvalidInput as error:
            raise CannotTrain(f"The table does not fit {folder / GOLDENS}: {error}") from None
        goldens.append(Golden(request=golden.request, answer=answer))
    write_goldens(folder, goldens)
    card = folder / CARD
    if card.exists():
        text = card.read_text(encoding="utf-8")
        note = (
            f"\n## Table of items\n\nVersion {manifest.version} has another table of items than version {last.name}: "
        )
        card.write_text(text.rstrip("\n") + f"\n{note}{changes}\n", encoding="utf-8")
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"created": created, "code": code_version(), "files": entries_of(folder)}
    write_manifest(folder, manifest.model_copy(update=facts))
    replay(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
