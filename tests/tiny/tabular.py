"""Tiny tabular models: of classes, and of a number, with a column of dates."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks._tables import CategoryColumn, DateColumn, NumberColumn
from tasks.tabular import Tabular
from tests.tiny.graphs import build_graph

CREDIT = Tabular(
    target="paid",
    labels=("no", "yes"),
    columns=(
        NumberColumn("income", 0.0, 100.0, example=50.0),
        NumberColumn("debt", 0.0, 50.0, example=5.0),
        CategoryColumn("job", ("baker", "clerk"), example="baker"),
    ),
    ignored=("sex",),
)
"""Predicts whether a loan is paid back."""

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


def credit_graph() -> bytes:
    """Make a graph that is linear in income and debt. A missing number (NaN) counts as zero; the job is ignored."""
    weight = np.array([[-0.05, 0.05], [0.1, -0.1]], np.float32)
    nodes = [
        helper.make_node("IsNaN", ["numbers"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "numbers"], ["known"]),
        helper.make_node("MatMul", ["known", "weight"], ["scores"]),
        helper.make_node("Cast", ["categories"], ["jobs"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["jobs", "zero"], ["nothing"]),
        helper.make_node("Add", ["scores", "nothing"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    return build_graph(CREDIT, nodes, {"weight": weight, "zero": np.zeros(1, np.float32)})


def failing_credit_graph() -> bytes:
    """Make a credit graph that fails in ONNX Runtime, with an index out of range, if the job is known."""
    model = onnx.load_model_from_string(credit_graph())
    table = numpy_helper.from_array(np.zeros((2, 1), np.float32), "table")
    model.graph.initializer.append(table)
    jobs = next(node for node in model.graph.node if node.output[0] == "jobs")
    gather = helper.make_node("Gather", ["table", "categories"], ["looked_up"], axis=0)
    squeeze = helper.make_node("Squeeze", ["looked_up", "last"], ["jobs"])
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "last"))
    index = list(model.graph.node).index(jobs)
    model.graph.node.remove(jobs)
    model.graph.node.insert(index, squeeze)
    model.graph.node.insert(index, gather)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


TASK, graph = CREDIT, credit_graph

VARIANTS = {"hires": (HIRES, hires_graph)}
