"""The smallest classifier; see tests/model_folders.py."""

from tests.model_folders import COLOURS as TASK
from tests.model_folders import colours_graph as graph

__all__ = ["TASK", "graph"]
