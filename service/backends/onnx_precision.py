"""The precision of a graph's weights, read from the bytes of an ONNX file without the package onnx.

The file is a message of Protocol Buffers: fields of a key (number × 8 + type) and a value. Only those that lead to the
weights are looked at: the graph in the model (7), its initializers (5), and their type (2) and raw data (9).
"""

from collections import Counter
from collections.abc import Iterator

_GRAPH, _INITIALIZER, _DATA_TYPE, _RAW_DATA = 7, 5, 2, 9
_PRECISIONS = {1: "float32", 2: "uint8", 3: "int8", 10: "float16", 11: "float64", 16: "bfloat16"}
"""TensorProto.DataType."""


def precision_of(graph: bytes) -> str:
    """Return the type of most of the weights, by their bytes; 'unknown' if there are none, or not in this file."""
    sizes: Counter[str] = Counter()
    try:
        for value in _messages(memoryview(graph), _GRAPH):
            for tensor in _messages(value, _INITIALIZER):
                fields = dict(_fields(tensor))
                content, data_type = fields.get(_RAW_DATA), fields.get(_DATA_TYPE)
                if isinstance(content, memoryview) and isinstance(data_type, int) and data_type in _PRECISIONS:
                    sizes[_PRECISIONS[data_type]] += len(content)
    except (IndexError, ValueError):
        return "unknown"
    return max(sizes, key=lambda precision: sizes[precision], default="unknown")


def _messages(data: memoryview, number: int) -> Iterator[memoryview]:
    return (value for found, value in _fields(data) if found == number and isinstance(value, memoryview))


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field. Raises IndexError and ValueError for anything else than a message."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if kind == 2:
            size, position = _varint(data, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"Fields of type {kind} do not exist.")
        yield number, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
