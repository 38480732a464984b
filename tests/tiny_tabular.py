"""The smallest table; see tests/model_folders.py."""

from tests.model_folders import CREDIT as TASK
from tests.model_folders import credit_graph as graph

__all__ = ["TASK", "graph"]
