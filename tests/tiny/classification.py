"""Tiny classifiers, one with a single label and one with several; see tests/model_folders.py."""

from dataclasses import replace

from tests.model_folders import COLOURS as TASK
from tests.model_folders import colours_graph as graph

__all__ = ["TAGS", "TASK", "VARIANTS", "graph"]

TAGS = replace(TASK, thresholds=(0.3, 0.3, 0.3))
"""Multi-label: which colours does an image have much of? The graph is the same."""

VARIANTS = {"tags": (TAGS, graph)}
