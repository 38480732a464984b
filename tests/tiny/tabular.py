"""The smallest tables: of classes (see tests/model_folders.py), and of a number, with a column of dates."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks._tables import CategoryColumn, DateColumn, NumberColumn
from tasks.tabular import Tabular
from tests.model_folders import CREDIT as TASK
from tests.model_folders import credit_graph as graph

__all__ = ["HIRES", "MORE", "TASK", "graph", "hires_graph"]

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
"""How many bicycles are hired in an hour?"""


def hires_graph() -> bytes:
    """A tenth of the days since the first, plus the hour's index, plus the temperature (10 where it is missing)."""
    constants = {
        "weight": np.array([[0.1], [1.0]], np.float32),
        "factors": np.array([[0.0], [1.0], [0.0]], np.float32),
        "ends": np.array([[0.5, 2.0]], np.float32),
        "usual": np.array([0.0, 10.0], np.float32),
        "last": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("IsNaN", ["numbers"], ["missing"]),
        helper.make_node("Where", ["missing", "usual", "numbers"], ["known"]),
        helper.make_node("MatMul", ["known", "weight"], ["from_numbers"]),
        helper.make_node("Cast", ["categories"], ["indices"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["indices", "factors"], ["from_categories"]),
        helper.make_node("Add", ["from_numbers", "from_categories"], ["column"]),
        helper.make_node("Squeeze", ["column", "last"], ["value"]),
        helper.make_node("Mul", ["column", "ends"], ["interval"]),
    ]
    made = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("categories", TensorProto.INT64, ["batch", 3]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["batch", 2]),
        ],
        [
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("interval", TensorProto.FLOAT, ["batch", 2]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


MORE = {"hires": (HIRES, hires_graph)}
"""Further kinds of this task, under names of their own."""
