"""Runtimes that execute graphs."""

import os

# ONNX Runtime's official builds send usage data to their maker since 1.29 (its Privacy.md), and write files for that.
# The variable is read at import. Set it to 0 to enable telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
