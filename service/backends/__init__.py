"""Runtimes that execute graphs."""

import os

# ONNX Runtime's official builds have sent usage data to Microsoft since 1.29 (see its Privacy.md), and write files for
# that. The variable is read at import. Set it to 0 to enable telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
