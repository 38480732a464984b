"""Publish a new table of items for a recommender: `python -m training.update_catalog models/movielens items.csv`.

Corrects titles, withdraws items and names new ones, without retraining. The graph is copied unchanged, so that a
service that has loaded it keeps using it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tasks._items import ItemTable
from tasks.contract import InvalidInput
from tasks.goldens import read_goldens
from tasks.manifest import GOLDENS, BrokenModel, Manifest, read_manifest, verify_files
from tasks.recommendations import Recommendations
from tasks.system_errors import describe_os_error, run_command_line
from training.core.config import add_options
from training.core.errors import CannotTrain
from training.data.delimited import RECOGNISED, CsvFormat, CsvOptions
from training.learners.recommendations.interactions import read_items
from training.publishing.republish import last_version, republish


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
    add_options(parser, CsvOptions(), "how the table is written")
    options = parser.parse_args(arguments)
    form = CsvFormat(options.separator, options.encoding)
    try:
        folder, changes = update_items(
            options.model, options.items, options.item_column, form, withdraw=options.withdraw
        )
    except (CannotTrain, BrokenModel) as error:
        print(f"training.update_catalog: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"training.update_catalog: {describe_os_error(error)}", file=sys.stderr)
        return 2
    print(changes)
    print(f"Published: {folder}")
    return 0


def update_items(
    model: Path, items: Path, column: str = "", form: CsvFormat = RECOGNISED, *, withdraw: bool = False
) -> tuple[Path, str]:
    """Publish a version of the model with this table of items; return its folder, and a summary of the changes.

    Raises CannotTrain or BrokenModel if the model is not a recommender, the table cannot be read, or it would
    withdraw more than half of the items without `withdraw`.
    """
    last = last_version(model)
    manifest = read_manifest(last)
    verify_files(last, manifest)
    old = manifest.load_task(last)
    if not isinstance(old, Recommendations):
        raise CannotTrain(f"{model} is a model of the task '{manifest.task}'; only recommendations have an item table.")
    table = merge_items(old, read_items(items, column, form))
    withdrawn = len(set(table.withdrawn) - set(old.items.withdrawn))
    if not withdraw and 2 * withdrawn > len(old.items) - len(old.items.withdrawn):
        raise CannotTrain(
            f"{items} does not list {withdrawn:,} of {len(old.items):,} items, which would no longer be recommended: "
            "list all that should be, or confirm with --withdraw."
        )
    task = Recommendations(old.known, old.scale, old.ordered, table, old.users, old.example_user, old.example_items)
    changes = _summarise_changes(old, task)

    requests = [golden.request for golden in read_goldens(last)]
    try:
        return republish(last, task, requests, lambda new: _card_section(last, new, changes)), changes
    except InvalidInput as error:
        raise CannotTrain(f"The table is not compatible with {last / GOLDENS}: {error}") from None


def _card_section(last: Path, manifest: Manifest, changes: str) -> str:
    return f"## Item table\n\nVersion {manifest.version} has a new item table, compared with {last.name}: {changes}"


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


if __name__ == "__main__":
    sys.exit(run_command_line(main, sys.argv[1:]))
