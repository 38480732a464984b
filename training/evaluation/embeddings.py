"""Embeddings for others: what a network learnt of categories, as a Parquet file; and their first axes, with names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.core.errors import CannotTrain
from training.core.results import EmbeddingTable, Table, Vectors


def write_embeddings(path: Path, tables: Sequence[EmbeddingTable]) -> int:
    """Writes all rows into one Parquet file; returns how many.

    Its columns: `field` (text), `index` (the row in the field's table: the graph's own number for the value), `value`
    (text, null where the row stands for no value), `name` (text) and `vector` (a list of float32, as long as the
    field's table is wide). Raises CannotTrain where there is nothing to write, or no place to write it.
    """
    import polars as pl

    if not tables:
        raise CannotTrain("--export-embeddings: this network has no embeddings: no column of it is one of categories.")
    frames = [
        pl.DataFrame(
            {
                "field": [table.field] * len(table.values),
                "index": list(range(len(table.values))),
                "value": list(table.values),
                "name": list(table.names) if table.names else list(table.values),
                "vector": table.vectors.astype(np.float32).tolist(),
            },
            schema={
                "field": pl.String,
                "index": pl.Int64,
                "value": pl.String,
                "name": pl.String,
                "vector": pl.List(pl.Float32),
            },
        )
        for table in tables
    ]
    whole = pl.concat(frames)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_parquet(path)
    except OSError as error:
        raise CannotTrain(f"--export-embeddings {path}: it cannot be written: {error.strerror or error}.") from None
    return whole.height


def principal(vectors: Vectors, axes: int = 2) -> tuple[Vectors, Vectors]:
    """The rows along the first principal axes, (n, axes), and the share of the variance that each axis holds.

    The sign of an axis is such that its largest value is positive, so that two runs draw the same picture.
    """
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    kept = min(axes, len(sizes))
    places = np.zeros((len(centred), axes))
    shares = np.zeros(axes)
    places[:, :kept] = left[:, :kept] * sizes[:kept]
    shares[:kept] = sizes[:kept] ** 2 / max(float((sizes**2).sum()), 1e-12)
    rows = np.abs(places).argmax(axis=0)
    signs = np.sign(places[rows, np.arange(axes)])
    return places * np.where(signs == 0, 1, signs), shares


def known(table: EmbeddingTable) -> tuple[list[str], Vectors]:
    """The names of the rows that stand for a value, and their vectors."""
    rows = [i for i, value in enumerate(table.values) if value is not None]
    names = table.names or tuple(value or "" for value in table.values)
    return [names[i] for i in rows], table.vectors[rows]


def extremes(tables: Sequence[EmbeddingTable], count: int = 3) -> Table:
    """What lies at either end of the first two principal axes of each field: the items that differ most."""
    rows = []
    for table in tables:
        names, vectors = known(table)
        if len(names) < 3:
            continue
        places, shares = principal(vectors)
        for axis in range(2):
            order = np.argsort(places[:, axis], kind="stable")
            few = min(count, len(names) // 2)
            low = ", ".join(names[i] for i in order[:few])
            high = ", ".join(names[i] for i in order[::-1][:few])
            rows.append((table.field, f"{axis + 1}, {shares[axis]:.0%} of the variance", low, high))
    note = "Values at the two ends of the first principal axes of the embeddings; those nearest an end come first."
    return Table("Embeddings by their principal axes", ("field", "axis", "one end", "other end"), tuple(rows), note)
