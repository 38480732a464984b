"""A tiny super-resolution model: each pixel becomes four of its colour."""

import numpy as np
from onnx import helper

from tasks.super_resolution import SuperResolution
from tests.tiny.graphs import build_graph

TASK = SuperResolution(scale=2, tile=32, overlap=10, margin=2)


def graph() -> bytes:
    """Build a graph for nearest-neighbour resizing of uint8 (batch, 32, 32, 3) to (batch, 64, 64, 3)."""
    resize = helper.make_node(
        "Resize",
        ["image", "", "scales"],
        ["restored"],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    return build_graph(TASK, [resize], {"scales": np.array([1, TASK.scale, TASK.scale, 1], np.float32)})
