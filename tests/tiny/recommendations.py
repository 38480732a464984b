"""A tiny recommender, made with onnx alone: seven films, of which the network knows six, and three people."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tasks._items import ItemTable, Scale
from tasks.recommendations import Recommendations

FILMS = ItemTable(
    ids=("1", "2", "3", "4", "5", "6", "7"),
    titles=("Heat (1995)", "Ronin (1998)", "Babe (1995)", "Toy Story (1995)", "Alien (1979)", "Aliens (1986)", "New"),
    likes=(9, 7, 6, 8, 5, 4, 0),
    details={"genres": ("Crime", "Crime", "Children", "Children", "Horror", "Horror", "")},
)
TASK = Recommendations(
    known=6,
    scale=Scale(low=0.5, high=5.0, levels=10, liked=4.0),
    ordered=True,
    items=FILMS,
    users={"ann": ((1, 3), (10, 2)), "bob": ((1, 2, 3, 4, 5, 6), (10, 9, 8, 10, 3, 2)), "cec": ((5,), (1,))},
    example_user="ann",
    example_items=("1", "4"),
)
"""What goes with Heat is Ronin, with Babe Toy Story, with Alien Aliens."""

POPULARITY = np.array([0.09, 0.07, 0.06, 0.08, 0.05, 0.04], np.float32)
ALIKE = np.zeros((7, 6), np.float32)
for _first, _second in ((0, 1), (2, 3), (4, 5)):
    ALIKE[_first + 1, _second] = ALIKE[_second + 1, _first] = 1
    ALIKE[_first + 1, _first] = ALIKE[_second + 1, _second] = 0.5


def graph() -> bytes:
    """The sum of what goes with each rated film, times its rating's level, and a little for popularity."""
    constants = {
        "alike": ALIKE,
        "popularity": POPULARITY,
        "tenth": np.float32(0.1),
        "none": np.float32(0),
        "not_wanted": np.float32(-2),
        "six": np.array([6], np.int64),
        "last": np.array([2], np.int64),
        "places": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["alike", "history"], ["rows"], axis=0),
        helper.make_node("Cast", ["levels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "tenth"], ["weights"]),
        helper.make_node("Unsqueeze", ["weights", "last"], ["columns"]),
        helper.make_node("Mul", ["rows", "columns"], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "places"], ["sums"], keepdims=0),
        helper.make_node("Cast", ["similar"], ["kind"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["kind", "none"], ["nothing"]),
        helper.make_node("Add", ["sums", "popularity"], ["liking"]),
        helper.make_node("Add", ["liking", "nothing"], ["all"]),
        helper.make_node("Cast", ["candidates"], ["wanted"], to=TensorProto.BOOL),
        helper.make_node("Where", ["wanted", "all", "not_wanted"], ["left"]),
        helper.make_node("TopK", ["left", "six"], ["scores", "items"], axis=1),
        helper.make_node("ArgMax", ["parts"], ["speaks"], axis=1, keepdims=0),
        helper.make_node("GatherElements", ["speaks", "items"], ["because"], axis=1),
        helper.make_node("ReduceMax", ["parts", "places"], ["most"], keepdims=0),
        helper.make_node("GatherElements", ["most", "items"], ["contributions"], axis=1),
    ]
    inputs = {
        "history": (TensorProto.INT64, "length"),
        "levels": (TensorProto.INT64, "length"),
        "candidates": (TensorProto.UINT8, 6),
        "similar": (TensorProto.UINT8, 1),
    }
    outputs = {
        "items": TensorProto.INT64,
        "scores": TensorProto.FLOAT,
        "because": TensorProto.INT64,
        "contributions": TensorProto.FLOAT,
    }
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, ["batch", size]) for name, (kind, size) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, ["batch", 6]) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
