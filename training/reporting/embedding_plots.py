"""Embeddings projected onto a plane, as a PNG file."""

from collections.abc import Sequence

import numpy as np

from training.core.results import EmbeddingTable
from training.evaluation.embeddings import known_values, project_to_principal_axes
from training.reporting.plots import BLUE, new_figure, style_axes, to_png

_MAX_NAMES = 24


def draw_embedding_planes(tables: Sequence[EmbeddingTable], columns: int = 3) -> bytes:
    """Draw each field's values along their first two principal axes; of many, only the outermost are named."""
    rows = (len(tables) + columns - 1) // columns
    figure = new_figure(4.2 * min(columns, len(tables)), 3.8 * rows)
    grid = figure.subplots(rows, min(columns, len(tables)), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, table in zip(grid.flat, tables, strict=False):
        axes.set_axis_on()
        names, vectors = known_values(table)
        points, fractions = project_to_principal_axes(vectors)
        axes.scatter(points[:, 0], points[:, 1], s=12, color=BLUE, alpha=0.7)
        distance = np.linalg.norm(points, axis=1)
        for i in np.argsort(-distance, kind="stable")[:_MAX_NAMES]:
            axes.annotate(names[i][:24], points[i], fontsize=7, xytext=(2, 2), textcoords="offset points")
        x_label, y_label = f"first axis ({fractions[0]:.0%})", f"second axis ({fractions[1]:.0%})"
        style_axes(axes, table.field, x_label, y_label)
    return to_png(figure)
