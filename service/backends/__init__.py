"""Runtimes for graphs, none of which reports to anybody what is served here."""

import os

# ONNX Runtime's own builds have sent what they are used for to their maker since 1.29 (its Privacy.md), and write files
# for that. Whether they do is settled when it is imported. Whoever wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
