"""Messages between the server and a worker process: pickled objects whose arrays are sent as they are, uncopied."""

import io
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from PIL import Image


class _Pickler(pickle.Pickler):
    """Pickles images by their pixels, as an array: Pillow's own way copies them into the message."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Image.Image):
            return Image.fromarray, (np.asarray(value),)
        return NotImplemented


def send(connection: "Connection[Any, Any]", message: Any) -> None:
    """Send an object. Raises OSError if the other side is gone."""
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    # The stub of `Pickler` has a narrower type for the callback than the documentation.
    keep: Callable[[pickle.PickleBuffer], Any] = buffers.append
    _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=keep).dump(message)
    views = [buffer.raw() for buffer in buffers]
    connection.send_bytes(pickle.dumps([len(view) for view in views]))
    connection.send_bytes(file.getbuffer())
    for view in views:
        if len(view):
            connection.send_bytes(view)


def receive(connection: "Connection[Any, Any]") -> Any:
    """Receive an object. Raises EOFError or OSError if the other side is gone."""
    return receive_with_size(connection)[0]


def receive_with_size(connection: "Connection[Any, Any]") -> tuple[Any, int]:
    """Receive an object, and return it with the bytes that it came in. Raises EOFError or OSError."""
    sizes = pickle.loads(connection.recv_bytes())  # noqa: S301 -- the other side is this project's own code
    content = connection.recv_bytes()
    buffers = [_receive_buffer(connection, size) for size in sizes]
    value = pickle.loads(content, buffers=buffers)  # noqa: S301 -- as above
    return value, len(content) + sum(sizes)


def _receive_buffer(connection: "Connection[Any, Any]", size: int) -> Any:
    buffer = np.empty(size, np.uint8)
    if size:
        connection.recv_bytes_into(buffer)
    return buffer
