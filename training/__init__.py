"""Train, evaluate, export and publish one model per task."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # Before ONNX Runtime is imported.
