"""Embeddings: export as a Parquet file, and the values at the ends of their principal axes."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.system_errors import os_error_reason
from training.core.errors import CannotTrain
from training.core.files import write_file
from training.core.results import EmbeddingTable, Table, Vectors


def write_embeddings(path: Path, tables: Sequence[EmbeddingTable]) -> int:
    """Write all rows to one Parquet file; return the number of rows.

    Its columns: `field` (text), `index` (the row in the field's table, which is the graph's own number of the value),
    `value` (text, null where the row stands for no value), `name` (text) and `vector` (a list of float32, as long as
    the field's embedding is wide). Raises CannotTrain if there are no embeddings, or the file cannot be written.
    """
    import polars as pl

    if not tables:
        raise CannotTrain("--export-embeddings: this network has no embeddings, since no column is categorical.")
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
    frame = pl.concat(frames)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        frame.write_parquet(file)
        write_file(path, file.getvalue())
    except OSError as error:
        raise CannotTrain(f"--export-embeddings {path} cannot be written: {os_error_reason(error)}.") from None
    return frame.height


def project_to_principal_axes(vectors: Vectors, axes: int = 2) -> tuple[Vectors, Vectors]:
    """Return the projection onto the first principal axes, (n, axes), and each axis's fraction of the variance.

    The sign of an axis is chosen such that its largest absolute value is positive, so that runs are comparable.
    """
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    kept = min(axes, len(sizes))
    projected = np.zeros((len(centred), axes))
    fractions = np.zeros(axes)
    projected[:, :kept] = left[:, :kept] * sizes[:kept]
    fractions[:kept] = sizes[:kept] ** 2 / max(float((sizes**2).sum()), 1e-12)
    rows = np.abs(projected).argmax(axis=0)
    signs = np.sign(projected[rows, np.arange(axes)])
    return projected * np.where(signs == 0, 1, signs), fractions


def known_values(table: EmbeddingTable) -> tuple[list[str], Vectors]:
    """Return the names of the rows that stand for a value, and their vectors."""
    rows = [i for i, value in enumerate(table.values) if value is not None]
    names = table.names or tuple(value or "" for value in table.values)
    return [names[i] for i in rows], table.vectors[rows]


def axis_extremes_table(tables: Sequence[EmbeddingTable], count: int = 3) -> Table:
    """Return the values at both ends of the first two principal axes of each field."""
    rows = []
    for table in tables:
        names, vectors = known_values(table)
        if len(names) < 3:
            continue
        projected, fractions = project_to_principal_axes(vectors)
        for axis in range(2):
            order = np.argsort(projected[:, axis], kind="stable")
            shown = min(count, len(names) // 2)
            low = ", ".join(names[i] for i in order[:shown])
            high = ", ".join(names[i] for i in order[::-1][:shown])
            rows.append((table.field, f"{axis + 1}, {fractions[axis]:.0%} of the variance", low, high))
    note = "Values at the two ends of the first principal axes of the embeddings, outermost first."
    if not rows:
        note = "No field has three values or more, of which there would be axes."
    return Table("Principal axes of the embeddings", ("field", "axis", "one end", "other end"), tuple(rows), note)
