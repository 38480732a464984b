"""A tiny recommender: seven films, of which the network knows six, and three users."""

import numpy as np
from onnx import TensorProto, helper

from tasks._items import ItemTable, Scale
from tasks.recommendations import Recommendations
from tests.tiny.graphs import build_graph

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
"""Similar films: Heat and Ronin, Babe and Toy Story, Alien and Aliens."""

POPULARITY = np.array([0.09, 0.07, 0.06, 0.08, 0.05, 0.04], np.float32)
SIMILARITY = np.zeros((7, 6), np.float32)
for _first, _second in ((0, 1), (2, 3), (4, 5)):
    SIMILARITY[_first + 1, _second] = SIMILARITY[_second + 1, _first] = 1
    SIMILARITY[_first + 1, _first] = SIMILARITY[_second + 1, _second] = 0.5


def graph() -> bytes:
    """Build a graph that scores films by similarity to the rated films, weighted by level, plus popularity."""
    constants = {
        "similarity": SIMILARITY,
        "popularity": POPULARITY,
        "tenth": np.float32(0.1),
        "zero": np.float32(0),
        "excluded": np.float32(-2),
        "six": np.array([6], np.int64),
        "last": np.array([2], np.int64),
        "history_axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["similarity", "history"], ["rows"], axis=0),
        helper.make_node("Cast", ["levels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "tenth"], ["weights"]),
        helper.make_node("Unsqueeze", ["weights", "last"], ["columns"]),
        helper.make_node("Mul", ["rows", "columns"], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "history_axis"], ["sums"], keepdims=0),
        helper.make_node("Cast", ["similar"], ["kind"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["kind", "zero"], ["nothing"]),
        helper.make_node("Add", ["sums", "popularity"], ["sum"]),
        helper.make_node("Add", ["sum", "nothing"], ["all"]),
        helper.make_node("Cast", ["candidates"], ["is_candidate"], to=TensorProto.BOOL),
        helper.make_node("Where", ["is_candidate", "all", "excluded"], ["remaining"]),
        helper.make_node("TopK", ["remaining", "six"], ["scores", "items"], axis=1),
        helper.make_node("ArgMax", ["parts"], ["position"], axis=1, keepdims=0),
        helper.make_node("GatherElements", ["position", "items"], ["because"], axis=1),
        helper.make_node("ReduceMax", ["parts", "history_axis"], ["largest"], keepdims=0),
        helper.make_node("GatherElements", ["largest", "items"], ["contributions"], axis=1),
    ]
    return build_graph(TASK, nodes, constants)
