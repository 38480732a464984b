"""How a network comes to keep the promise of its task."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # As in service/backends: before ONNX Runtime is imported.
