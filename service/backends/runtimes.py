"""The runtimes that the setting `backend` chooses between, and the file of a model folder that each of them opens.

A runtime is imported when it is chosen: its package may not be installed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from service.backends.base import BackendError, Runtime
from tasks.manifest import MODEL

Name = Literal["onnxruntime", "torchscript"]
GRAPH_FILES: Mapping[Name, str] = MappingProxyType({"onnxruntime": MODEL, "torchscript": "model.ts"})


def make_runtime(name: Name, device: Literal["auto", "cpu", "cuda"], threads: int) -> Runtime:
    """Return the runtime of this name. Raises BackendError if torch is needed and not installed."""
    if name == "onnxruntime":
        from service.backends.onnx import OnnxRuntime

        return OnnxRuntime(device, threads)
    try:
        from service.backends.torchscript import TorchScriptRuntime
    except ImportError as error:
        raise BackendError(f"--backend torchscript needs torch, which cannot be imported: {error}.") from None
    return TorchScriptRuntime(device, threads)
