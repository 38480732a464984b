"""Store the weights of a graph in 16 bits: half the file size, with 32-bit arithmetic once it is loaded."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_MIN_ELEMENTS = 1024
"""Smaller tensors stay in 32 bits: they save little, and most are norms and statistics."""
STORED_SUFFIX = "_16bit"
"""Ending of the names of constants that are stored in 16 bits."""


def store_as_fp16(path: Path) -> None:
    """Rewrite the graph at `path`: each large float32 constant becomes float16, followed by a cast to float32.

    A runtime casts constants once, when it loads the graph. Tensors with values beyond float16's range (65504) stay in
    32 bits.
    """
    model = onnx.load(path)
    graph = model.graph
    casts = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < _MIN_ELEMENTS:
            continue
        values = numpy_helper.to_array(tensor)
        if not np.abs(values).max() <= np.finfo(np.float16).max:
            continue
        stored = numpy_helper.from_array(values.astype(np.float16), tensor.name + STORED_SUFFIX)
        casts.append(helper.make_node("Cast", [stored.name], [tensor.name], to=TensorProto.FLOAT))
        graph.initializer.remove(tensor)
        graph.initializer.append(stored)
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
