"""Embeddings in a plane, as a PNG file."""

from collections.abc import Sequence

import numpy as np

from training.core.results import EmbeddingTable
from training.evaluation.embeddings import known_values, project_to_principal_axes
from training.reporting.plots import BLUE, new_figure, style_axes, to_png

_ALL_NAMED = 24


def draw_embedding_planes(tables: Sequence[EmbeddingTable], columns: int = 3) -> bytes:
    """Each field's values along their first two principal axes; where they are many, only the outermost are named."""
    rows = (len(tables) + columns - 1) // columns
    sheet = new_figure(4.2 * min(columns, len(tables)), 3.8 * rows)
    grid = sheet.subplots(rows, min(columns, len(tables)), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, table in zip(grid.flat, tables, strict=False):
        axes.set_axis_on()
        names, vectors = known_values(table)
        places, shares = project_to_principal_axes(vectors)
        axes.scatter(places[:, 0], places[:, 1], s=12, color=BLUE, alpha=0.7)
        distance = np.linalg.norm(places, axis=1)
        for i in np.argsort(-distance, kind="stable")[:_ALL_NAMED]:
            axes.annotate(names[i][:24], places[i], fontsize=7, xytext=(2, 2), textcoords="offset points")
        style_axes(axes, table.field, f"first axis ({shares[0]:.0%})", f"second axis ({shares[1]:.0%})")
    return to_png(sheet)
