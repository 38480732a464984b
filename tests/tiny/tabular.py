"""Tiny tabular models: of classes (see tests/model_folders.py), and of a number, with a column of dates."""

import numpy as np
from onnx import TensorProto, helper

from tasks._tables import CategoryColumn, DateColumn, NumberColumn
from tasks.tabular import Tabular
from tests.model_folders import CREDIT as TASK
from tests.model_folders import credit_graph as graph
from tests.tiny.graphs import build_graph

__all__ = ["HIRES", "TASK", "VARIANTS", "graph", "hires_graph"]

HIRES = Tabular(
    target="hires",
    labels=(),
    columns=(
        DateColumn(
            "when",
            "2011-01-01T00:00",
            "2012-08-31T23:00",
            parts=(
                CategoryColumn("weekday", tuple("0123456"), integer=True),
                CategoryColumn("hour", tuple(str(hour) for hour in range(24)), integer=True),
                NumberColumn("elapsed", 0.0, 609.0),
            ),
            clock=True,
            example="2012-06-01T08:00",
        ),
        NumberColumn("temp", -10.0, 40.0, example=20.0),
        CategoryColumn("weather", ("clear", "rain"), example="clear"),
    ),
    spread=(1.0, 900.0),
)
"""The number of bicycles hired in an hour."""


def hires_graph() -> bytes:
    """Build a graph: a tenth of the elapsed days, plus the hour's index, plus the temperature (10 if missing)."""
    constants = {
        "weight": np.array([[0.1], [1.0]], np.float32),
        "factors": np.array([[0.0], [1.0], [0.0]], np.float32),
        "ends": np.array([[0.5, 2.0]], np.float32),
        "default": np.array([0.0, 10.0], np.float32),
        "last": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("IsNaN", ["numbers"], ["missing"]),
        helper.make_node("Where", ["missing", "default", "numbers"], ["known"]),
        helper.make_node("MatMul", ["known", "weight"], ["from_numbers"]),
        helper.make_node("Cast", ["categories"], ["indices"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["indices", "factors"], ["from_categories"]),
        helper.make_node("Add", ["from_numbers", "from_categories"], ["column"]),
        helper.make_node("Squeeze", ["column", "last"], ["value"]),
        helper.make_node("Mul", ["column", "ends"], ["interval"]),
    ]
    return build_graph(HIRES, nodes, constants)


VARIANTS = {"hires": (HIRES, hires_graph)}
